"""A published snapshot, trusted only after every byte of it was checked.

Whoever loads may begin before the last byte was: what code could come from, and the header of every
tensor file, is checked first; the tensors' bytes are checked while they are loaded.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import ChecksumMismatchError, UnsafeWeightsError, WeightsCorruptError, WeightsNotFoundError
from gpuserve.runtime.weights.headers import read_header
from gpuserve.runtime.weights.manifest import LARGEST_MANIFEST, MANIFEST, ManifestFile, SnapshotManifest
from gpuserve.runtime.weights.steps import files_below, read_plain, sha256_of

__all__ = ["FILES", "Snapshot", "Verification", "begin_snapshot", "listed_snapshot", "open_snapshot"]

FILES = "files"
_MOST_THREADS = 8
_TENSORS = ".safetensors"


@dataclass(frozen=True)
class Snapshot:
    """Weights that were verified.

    Attributes:
        path: The folder to load from; it holds the source's files and nothing else.
        manifest: What they are, and where they came from.
    """

    path: Path
    manifest: SnapshotManifest


def open_snapshot(folder: Path, *, reload: Callable[[], None] | None = None) -> Snapshot:
    """Verify the snapshot in *folder* against its manifest: every name, size, header and sha256.

    Args:
        folder: Where it was published.
        reload: Called once where there is no manifest, to see what was committed since the mount.

    Raises:
        WeightsNotFoundError: If there is no manifest.
        WeightsCorruptError: If anything is missing, too much, a link, or malformed.
        ChecksumMismatchError: If a file's content is not the one in the manifest.
    """
    return Verification(listed_snapshot(folder, reload=reload)).wait()


def begin_snapshot(folder: Path, *, reload: Callable[[], None] | None = None) -> Verification:
    """The same, but back as soon as tensors may be loaded: only their bytes are still being checked.

    Raises:
        WeightsNotFoundError: If there is no manifest.
        WeightsCorruptError: If anything is missing, too much, a link, or malformed.
        ChecksumMismatchError: If a file that holds no tensors is not the one in the manifest.
    """
    verification = Verification(listed_snapshot(folder, reload=reload))
    verification.wait_for_all_but_tensors()
    return verification


class Verification:
    """A snapshot whose files are being checked, in threads of their own.

    Attributes:
        snapshot: What is checked; not to be trusted before `wait` returned it.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        """Begin: of what may be loaded first, and then with the largest."""
        self.snapshot = snapshot
        self.begun, self._ended = time.monotonic(), 0.0
        largest_first = sorted(snapshot.manifest.files, key=lambda one: -one.size)
        self._tensors = [one for one in largest_first if one.path.endswith(_TENSORS)]
        others = [one for one in largest_first if not one.path.endswith(_TENSORS)]
        threads = ThreadPoolExecutor(
            min(_MOST_THREADS, os.cpu_count() or 1, len(largest_first)), thread_name_prefix="gpuserve-verify"
        )
        self._others: list[Future[None]] = [threads.submit(_check, snapshot.path, one) for one in others]
        self._running = self._others + [threads.submit(self._check_tensors, one) for one in self._tensors]
        threads.shutdown(wait=False)

    def wait_for_all_but_tensors(self) -> None:
        """Until whatever could run code is checked, and the headers of the tensors.

        Raises:
            WeightsError: With the first fault.
        """
        for one in self._tensors:
            with _that_may_vanish(one):
                try:
                    read_header(self.snapshot.path / one.path, one.path)
                except UnsafeWeightsError:  # nothing that a user could allow: it was none when it was published
                    raise WeightsCorruptError(one.path, "it begins as a pickle does, and was no pickle") from None
        for done in self._others:
            done.result()

    def wait(self) -> Snapshot:
        """Until every byte is checked.

        Raises:
            WeightsError: With the first fault, the largest files first; every file was looked at then.
        """
        for done in self._running:
            done.exception()
        for done in self._running:
            done.result()
        return self.snapshot

    @property
    def seconds(self) -> float:
        """How long the check took, or has taken so far."""
        return (self._ended or time.monotonic()) - self.begun

    def _check_tensors(self, file: ManifestFile) -> None:
        try:
            _check(self.snapshot.path, file)
        finally:
            self._ended = time.monotonic()


def listed_snapshot(folder: Path, *, reload: Callable[[], None] | None = None) -> Snapshot:
    """The snapshot as its manifest tells it, whose names and sizes are right and whose bytes nobody looked at.

    Raises:
        WeightsNotFoundError: If there is no manifest.
        WeightsCorruptError: If anything is missing, too much, a link, or malformed.
    """
    manifest_path = folder / MANIFEST
    if reload is not None and not manifest_path.is_file():
        reload()
    if folder.is_symlink():
        raise WeightsCorruptError(folder.name, "the snapshot is a symbolic link")
    try:
        return _listed(folder, read_plain(manifest_path, MANIFEST, LARGEST_MANIFEST))
    except (FileNotFoundError, NotADirectoryError):  # also of one that a fetch takes away at this moment, to mend it
        raise WeightsNotFoundError(
            f"no weights are published at {folder}; fetch them first: gpuserve weights fetch, or the app's "
            f"function fetch_weights"
        ) from None


def _listed(folder: Path, text: bytes) -> Snapshot:
    manifest = SnapshotManifest.from_bytes(text, where=MANIFEST)
    if sorted(one.name for one in folder.iterdir()) != [FILES, MANIFEST]:
        raise WeightsCorruptError(str(folder), f"it must hold {FILES} and {MANIFEST} and nothing else")
    files = folder / FILES
    if files.is_symlink() or not files.is_dir():
        raise WeightsCorruptError(FILES, "it is not a folder")
    _check_names(files_below(files), manifest)
    return Snapshot(files, manifest)


def _check_names(found: dict[str, int], manifest: SnapshotManifest) -> None:
    named = {one.path: one.size for one in manifest.files}
    for path in sorted(named.keys() - found.keys()):
        raise WeightsCorruptError(path, "it is missing")
    for path in sorted(found.keys() - named.keys()):
        raise WeightsCorruptError(path, "the manifest does not name it")
    for path, size in named.items():
        if found[path] != size:
            raise WeightsCorruptError(path, f"expected {size:,} bytes, got {found[path]:,}")


def _check(folder: Path, file: ManifestFile) -> None:
    path = folder / file.path
    with _that_may_vanish(file):
        got = sha256_of(path, file.path)
    if not hmac.compare_digest(got, file.sha256):
        raise ChecksumMismatchError(file.path, file.sha256, got)
    if file.path.endswith(_TENSORS):
        with _that_may_vanish(file):
            read_header(path, file.path)


@contextlib.contextmanager
def _that_may_vanish(file: ManifestFile) -> Iterator[None]:
    """A damaged snapshot is taken away by whoever mends it, also from under those who still check it."""
    try:
        yield
    except FileNotFoundError:
        raise WeightsCorruptError(file.path, "it is missing") from None
