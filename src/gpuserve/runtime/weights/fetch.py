"""From a source to a published snapshot: listed, fetched in parallel, verified, published whole."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from gpuserve.exceptions import (
    ChecksumMismatchError,
    DiskFullError,
    WeightsCorruptError,
    WeightsError,
    WeightsNotFoundError,
    WeightsSourceError,
)
from gpuserve.runtime.lease import Lease
from gpuserve.runtime.weights.folder import FolderOrigin
from gpuserve.runtime.weights.headers import read_header
from gpuserve.runtime.weights.hub import HubOrigin
from gpuserve.runtime.weights.manifest import ManifestFile, SnapshotManifest, strict_json
from gpuserve.runtime.weights.selection import is_safe, selected
from gpuserve.runtime.weights.snapshot import Snapshot, Verification, begin_snapshot, listed_snapshot, open_snapshot
from gpuserve.runtime.weights.steps import free_bytes, naming_a_full_disk
from gpuserve.runtime.weights.store import Fetchable, Source, WeightsStore
from gpuserve.runtime.weights.workspace import Entry, OversizedError, Part, Workspace, sweep
from gpuserve.specs.source import AdapterSource, AliasSource, FolderSource, HubSource, VolumeSource

if TYPE_CHECKING:
    from gpuserve.runtime.ports import VolumePort

__all__ = ["FetchReport", "FetchRun", "Progress", "begin_reading"]

_TRIES = 2
_MOST_FILES = 20_000


@dataclass(frozen=True)
class Progress:
    """How far a fetch is: *done* bytes of *total*; *file* is the one that just moved."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class FetchReport:
    """What a fetch came to.

    Attributes:
        snapshot: The snapshot's name in the volume.
        commit: The commit, or the content's digest; what to pin.
        digest: One digest over all files.
        files: How many there are.
        size: Their bytes.
        published: Whether this fetch published it; it was there already otherwise.
        fetched: Bytes that came from the source.
        resumed: Bytes that an interrupted fetch had left.
    """

    snapshot: str
    commit: str
    digest: str
    files: int
    size: int
    published: bool = False
    fetched: int = 0
    resumed: int = 0


class _Origin(Protocol):
    def listing(self) -> tuple[str, list[Entry]]: ...
    def download(self, commit: str, part: Part) -> None: ...


def _origin(source: HubSource | FolderSource | VolumeSource) -> _Origin:
    return HubOrigin(source) if isinstance(source, HubSource) else FolderOrigin(source)


def begin_reading(store: WeightsStore, source: Source, volume: VolumePort) -> Verification:
    """The snapshot of a source, seen afresh once where it is not there yet, while its tensors are checked.

    Raises:
        WeightsNotFoundError: If it was never fetched.
        WeightsError: If it cannot be trusted.
    """
    key = store.resolved(source)
    if key is None:
        volume.reload()
        key = store.resolved(source)
    if key is None and isinstance(source, AliasSource):
        raise WeightsNotFoundError(
            f"nothing is in service as {source.name} in {store.root} yet; promote a snapshot: "
            f"gpuserve weights promote {source.name} SNAPSHOT"
        )
    if key is None:
        raise WeightsNotFoundError(
            f"{source} was not fetched into {store.root} yet; run the app's function fetch_weights, "
            f"or gpuserve weights fetch"
        )
    found = begin_snapshot(store.folder(key), reload=volume.reload)
    store.checked(found.snapshot, source, key)
    return found


@dataclass
class FetchRun:
    """One fetch of one source into one store.

    Args:
        store: Where to.
        source: Where from.
        volume: Committed after publishing.
        lease: Saves work among fetches at the same time.
        on_progress: Told of every piece that came.
        workers: Files that are fetched at once.
    """

    store: WeightsStore
    source: Fetchable
    volume: VolumePort
    lease: Lease
    on_progress: Callable[[Progress], None] = lambda _progress: None
    workers: int = 8
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: int = 0
    _fetched_bytes: int = 0
    _resumed: int = 0
    _total: int = 0
    _damaged: int | None = None

    def run(self, *, refresh: bool = False) -> FetchReport:
        """Fetch, unless it is there and whole; *refresh* asks anew what a branch stands for.

        Raises:
            WeightsError: With what is wrong; nothing is published then.
        """
        with naming_a_full_disk(self.store.root, 0):
            self.store.prepare()
        plain = _plain(self.source)
        known = self.store.resolved(self.source)
        may_skip = known is not None and (not refresh or self.store.pinned_key(self.source) == known)
        if known is not None and may_skip and not isinstance(plain, FolderSource | VolumeSource):
            whole = self._whole(known)
            if whole is not None:
                sweep(self.store, known)
                self.volume.commit()  # whoever published it may have died before this
                return _report(known, whole)
        if isinstance(plain, HubSource) and known is not None and not refresh:
            plain = plain.model_copy(update={"revision": self.store.commit_in(self.source, known)})
        origin = _origin(plain)
        commit, listed = origin.listing()
        key = self.store.key(self.source, commit)
        if isinstance(plain, HubSource) and not plain.is_pinned:
            warnings.warn(f"{plain} is not pinned; it is {commit} now: write revision={commit!r}", stacklevel=2)
        with self.lease.hold(key):
            report = self._fetched(origin, commit, listed, key)
        if self.store.pinned_key(self.source) is None:
            with naming_a_full_disk(self.store.root, 0):
                self.store.record(self.source, key)
        self.volume.commit()
        return report

    def _whole(self, key: str) -> Snapshot | None:
        """The snapshot, if it is there and verifies."""
        folder = self.store.folder(key)
        self._damaged = None
        try:
            inode = folder.stat().st_ino
        except FileNotFoundError:
            return None
        try:
            return self.store.checked(open_snapshot(folder), self.source, key)
        except WeightsError:
            self._damaged = inode
            return None  # told again by whoever opens it; here it means: fetch

    def _fetched(self, origin: _Origin, commit: str, listed: list[Entry], key: str) -> FetchReport:
        self.volume.reload()  # another may have published while we waited
        whole = self._whole(key)
        if whole is not None:
            return _report(key, whole)
        plain = _plain(self.source)
        by_path = {one.path: one for one in listed}
        entries = [by_path[path] for path in selected(by_path, plain)]
        _require_sane(entries, plain)
        unique = {one.content: one for one in entries}
        self._total = sum(one.size for one in unique.values())
        with Workspace(self.store, key) as workspace:
            if self._damaged is not None:
                workspace.set_aside(self._damaged)
            workspace.adopt(entries)
            self._require_room(workspace, unique)
            with ThreadPoolExecutor(self.workers, thread_name_prefix="gpuserve-weights") as threads:
                waiting = [threads.submit(self._one, origin, commit, workspace, one) for one in unique.values()]
                try:
                    digests = dict(zip(unique, [one.result() for one in waiting], strict=True))
                except BaseException:
                    threads.shutdown(cancel_futures=True)
                    raise
            files = [_file(one, digests[one.content], plain) for one in entries]
            for one in entries:
                if one.path.endswith(".safetensors"):
                    read_header(workspace.part_path(one), one.path)
            self._check_adapter(workspace, {one.path: one for one in entries})
            manifest = SnapshotManifest.of(self.source, commit, files)
            workspace.assemble(entries, manifest)
            published = workspace.publish()
        # every byte of ours was hashed as it was written or taken over, under a lock, and synced; what another
        # published first is hashed here, or nobody is told that it is whole
        read_back = listed_snapshot if published else open_snapshot
        snapshot = self.store.checked(read_back(self.store.folder(key)), self.source, key)
        return _report(key, snapshot, published=published, fetched=self._fetched_bytes, resumed=self._resumed)

    def _require_room(self, workspace: Workspace, unique: dict[str, Entry]) -> None:
        held = sum(path.stat().st_size for path in map(workspace.part_path, unique.values()) if path.exists())
        need, free = self._total - held, free_bytes(self.store.root)
        if free is not None and need > free:
            raise DiskFullError(str(self.store.root), need, free)

    def _one(self, origin: _Origin, commit: str, workspace: Workspace, entry: Entry) -> str:
        """Fetch one content, twice at most; its sha256."""
        with naming_a_full_disk(self.store.root, entry.size):
            part = Part(workspace.part_path(entry), entry, lambda count: self._moved(entry.path, count))
        bad = None
        try:
            for _ in range(_TRIES):
                try:
                    origin.download(commit, part)
                except OversizedError:
                    part.restart()
                    continue
                except OSError as error:
                    if error.errno is not None or type(error) is not OSError:
                        raise
                    # huggingface_hub's word for a body of another length: what came is judged below
                if part.mismatch is None:
                    part.close()
                    with self._lock:
                        self._fetched_bytes += part.came
                        self._resumed += max(0, entry.size - part.came)
                    return part.sha256
                bad = part.mismatch
                part.restart()
            raise ChecksumMismatchError(entry.path, *(bad or _nothing(entry)))
        finally:
            part.drop()

    def _moved(self, path: str, count: int) -> None:
        with self._lock:
            self._done += count
            self.on_progress(Progress(path, self._done, self._total))  # within the lock, so that counts come in order

    def _check_adapter(self, workspace: Workspace, by_path: dict[str, Entry]) -> None:
        if not isinstance(self.source, AdapterSource):
            return
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if name not in by_path:
                raise WeightsCorruptError(name, f"{self.source} lacks it, so it is not an adapter")
        config = strict_json(workspace.part_path(by_path["adapter_config.json"]).read_bytes(), "adapter_config.json")
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
        if self.source.base is not None and base != self.source.base:
            raise WeightsCorruptError("adapter_config.json", f"it adapts {base!r}, expected {self.source.base!r}")


def _plain(source: Fetchable) -> HubSource | FolderSource | VolumeSource:
    return source.narrowed() if isinstance(source, AdapterSource) else source


def _require_sane(entries: list[Entry], source: Source) -> None:
    paths = {one.path for one in entries}
    both = sorted(paths & {str(parent) for path in paths for parent in PurePosixPath(path).parents})
    if both:
        raise WeightsSourceError(f"{source} names {both[0]} as a file and as a folder; do not trust it")
    if len(paths) > _MOST_FILES:
        raise WeightsSourceError(f"{source} has {len(paths):,} files to take, {_MOST_FILES:,} at most: use include")


def _nothing(entry: Entry) -> tuple[str, str]:
    return entry.sha256 or entry.git_oid or "", f"more than its {entry.size:,} bytes"


def _file(entry: Entry, digest: str, source: HubSource | FolderSource | VolumeSource) -> ManifestFile:
    unsafe = entry.path in source.allow_unsafe and not is_safe(entry.path)
    return ManifestFile(path=entry.path, size=entry.size, sha256=digest, unsafe=unsafe)


def _report(
    key: str, snapshot: Snapshot, *, published: bool = False, fetched: int = 0, resumed: int = 0
) -> FetchReport:
    manifest = snapshot.manifest
    return FetchReport(
        key, manifest.commit, manifest.digest, len(manifest.files), manifest.size, published, fetched, resumed
    )
