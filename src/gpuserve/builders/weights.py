"""`VolumeWeightsCache`: model weights, fetched once into a Modal Volume and verified wherever they are loaded."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from gpuserve.exceptions import UnsafeWeightsError, WeightsError
from gpuserve.specs.source import AliasSource
from gpuserve.specs.weights import WeightsDeclaration

if TYPE_CHECKING:
    from gpuserve.runtime.weights.fetch import FetchReport, Progress
    from gpuserve.runtime.weights.snapshot import Snapshot, Verification

__all__ = ["VolumeWeightsCache"]

# Source: CVE-2026-24747; before 2.10, weights_only=True does not keep a pickle from running code.
_SAFE_TORCH = (2, 10)
_READ: dict[tuple[str, str], Verification] = {}
_READING = threading.Lock()


class VolumeWeightsCache(WeightsDeclaration):
    """Weights in a Modal Volume: fetched once, at one commit, every byte verified, published whole or not at all.

    One value for all who need the weights: `gpuserve.register_weights` makes the function that fetches,
    `gpuserve.weights_volumes` the read-only mount, and `path` gives the verified folder in a container.

    Attributes:
        source: A `HubSource`, `FolderSource`, `VolumeSource`, `AdapterSource` or `AliasSource`.
        volume: The Modal Volume that holds them; several caches may share one.
        mount_path: Where readers see the volume.
        token: The secret with ``HF_TOKEN``.
        env: Environment variables of the fetch, e.g. ``HF_ENDPOINT``.
        image: The fetch's image.
        workers: Files fetched at once.
        timeout_s: Seconds that a fetch may take.

    Raises:
        DeclarationError: With every fault.

    Examples:
        >>> import gpuserve
        >>> weights = gpuserve.VolumeWeightsCache(
        ...     source=gpuserve.HubSource(
        ...         "sentence-transformers/all-MiniLM-L6-v2", revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
        ...     ),
        ...     volume="models",
        ... )
        >>> weights.mounted_at
        '/gpuserve-weights/models'
    """

    @property
    def root(self) -> Path:
        """The store: the volume's mount in a container, a folder of ``GPUSERVE_HOME`` elsewhere."""
        mounted = Path(self.mounted_at)
        if os.environ.get("MODAL_IS_REMOTE") == "1" or mounted.is_dir():
            return mounted
        home = os.environ.get("GPUSERVE_HOME")
        return (Path(home) if home else Path.home() / ".gpuserve") / "weights" / self.volume

    def path(self, *, root: Path | None = None) -> Path:
        """The folder to load from, verified once a process.

        Args:
            root: The store's folder, where it is not the usual one.

        Raises:
            WeightsNotFoundError: If nothing was fetched yet.
            WeightsError: If what is there cannot be trusted.
        """
        return self.snapshot(root=root).path

    def snapshot(self, *, root: Path | None = None) -> Snapshot:
        """The same, with the manifest: the commit, and every file's sha256.

        Raises:
            WeightsNotFoundError: If nothing was fetched yet.
            WeightsError: If what is there cannot be trusted.
        """
        found = self.begin(root=root)
        try:
            return found.wait()
        except WeightsError:
            self._forget(root if root is not None else self.root)  # it may be fetched again and be whole
            raise

    def begin(self, *, root: Path | None = None) -> Verification:
        """The same, back as soon as tensors may be loaded; trust them only once `Verification.wait` returned.

        What holds no tensors is verified by then, and so is the header of each tensor file.

        Args:
            root: The store's folder, where it is not the usual one.

        Raises:
            WeightsNotFoundError: If nothing was fetched yet.
            WeightsError: If what is there cannot be trusted.
        """
        from gpuserve.runtime.weights.fetch import begin_reading
        from gpuserve.runtime.weights.store import WeightsStore

        store = WeightsStore(root if root is not None else self.root)
        known = self._known(store.root)
        with _READING:
            if known not in _READ:
                _READ[known] = begin_reading(store, self.source, self._volume_port(root))
            found = _READ[known]
        _require_safe_torch(tuple(one.path for one in found.snapshot.manifest.files if one.unsafe))
        return found

    def fetch(
        self,
        *,
        root: Path | None = None,
        refresh: bool = False,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> FetchReport:
        """Fetch in this process, e.g. for `WarmModelServer.local`; in a container, use the registered function.

        Args:
            root: The store's folder, where it is not the usual one.
            refresh: Ask the hub anew what a branch stands for.
            on_progress: Told of every piece that came, from several threads.

        Raises:
            WeightsError: With what is wrong; nothing is published then.
        """
        from gpuserve.runtime.lease import FileLease
        from gpuserve.runtime.weights.fetch import FetchRun
        from gpuserve.runtime.weights.store import WeightsStore, fetchable

        store = WeightsStore(root if root is not None else self.root)
        lease = FileLease(store.incomplete)
        run = FetchRun(store, fetchable(self.source), self._volume_port(root), lease, on_progress, self.workers)
        report = run.run(refresh=refresh)
        self._forget(store.root)
        return report

    def _forget(self, root: Path) -> None:
        with _READING:
            _READ.pop(self._known(root), None)

    def _known(self, root: Path) -> tuple[str, str]:
        from gpuserve.runtime.weights.store import WeightsStore

        if isinstance(self.source, AliasSource):  # what it stands for may be another one by now
            return str(root), f"{self.source.alias}/{WeightsStore(root).resolved(self.source)}"
        return str(root), f"{self.source.alias}/{getattr(self.source, 'digest', None)}"

    def _volume_port(self, root: Path | None) -> Any:
        from gpuserve.runtime.ports import ModalVolume, PlainFolder

        if root is None and os.environ.get("MODAL_IS_REMOTE") == "1":
            return ModalVolume(self.volume)
        return PlainFolder()


def _require_safe_torch(unsafe: tuple[str, ...]) -> None:
    if not unsafe:
        return
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return
    if Version(version).release < _SAFE_TORCH:
        raise UnsafeWeightsError(
            unsafe,
            f"and torch {version} is older than 2.10, whose weights_only is no guard",
            "Pin torch 2.10 or newer in the image, or convert them to safetensors",
        )
