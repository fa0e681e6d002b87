"""The folder that one fetch works in, in the same volume: files by content, kept for whoever comes after a kill."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gpuserve.exceptions import DiskFullError, WeightsSourceError
from gpuserve.runtime.weights.manifest import MANIFEST, SnapshotManifest, is_contained
from gpuserve.runtime.weights.snapshot import FILES
from gpuserve.runtime.weights.steps import naming_a_full_disk, sync_file, sync_folder, write_new
from gpuserve.runtime.weights.store import WeightsStore

__all__ = ["Entry", "OversizedError", "Part", "Workspace", "sweep"]

_BLOCK = 1 << 20
_LOCK = "lock"
_SHA256, _SHA1 = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Entry:
    """A file to fetch, and what the source says that it is.

    Attributes:
        path: Where it stands in the source.
        size: Its bytes.
        sha256: Its digest, where the source tells one.
        git_oid: Its git object id, which the hub tells for small files.
    """

    path: str
    size: int
    sha256: str | None = None
    git_oid: str | None = None

    def __post_init__(self) -> None:
        """Believe no name, digest or size that cannot be one: they become names of files here.

        Raises:
            WeightsSourceError: If one cannot.
        """
        digests = ((self.sha256, _SHA256), (self.git_oid, _SHA1))
        if (
            not is_contained(self.path)
            or not 0 <= self.size < 1 << 50
            or any(one is not None and not pattern.fullmatch(one) for one, pattern in digests)
            or (self.sha256 is None and self.git_oid is None)
        ):
            raise WeightsSourceError(
                f"the source names a file that cannot be: path {self.path[:200]!r}, size {self.size}, "
                f"sha256 {str(self.sha256)[:80]!r}, git object {str(self.git_oid)[:80]!r}; do not trust it"
            )

    @property
    def content(self) -> str:
        """A name for the content, whatever the path: what was fetched for one path serves another."""
        return f"sha256-{self.sha256}" if self.sha256 else f"git-{self.git_oid}-{self.size}"


class OversizedError(OSError):
    """More bytes came than the file has."""


class Part:
    """A file that grows as it is fetched, and knows its digests; what it holds already is read first."""

    def __init__(self, path: Path, entry: Entry, on_bytes: Callable[[int], None] = lambda _count: None) -> None:
        self.path, self.entry = path, entry
        self._on_bytes = on_bytes
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b", buffering=0)
        self._begin()
        while block := self._file.read(_BLOCK):
            self._count(block)
        if self.size > entry.size:
            self.restart()
        self.came = 0
        on_bytes(self.size)

    def _begin(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % self.entry.size, usedforsecurity=False)

    def _count(self, data: bytes) -> None:
        self.size += len(data)
        self._sha256.update(data)
        if self.entry.sha256 is None:
            self._git.update(data)

    def write(self, data: bytes) -> int:
        """Add what came.

        Raises:
            OversizedError: If it is more than the file has.
            DiskFullError: If there is no room.
        """
        if self.size + len(data) > self.entry.size:
            raise OversizedError(f"{self.entry.path} has {self.entry.size} bytes, and more came")
        with naming_a_full_disk(self.path.parent, self.entry.size - self.size):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        self._count(data)
        self.came += len(data)
        self._on_bytes(len(data))
        return len(data)

    def tell(self) -> int:
        """Bytes held."""
        return self.size

    def seek(self, place: int) -> int:
        """Only back to the beginning: what a server does that ignores a range."""
        if place != 0:
            raise ValueError(f"a part is fetched again from the beginning, not from byte {place}")
        return 0

    def truncate(self) -> None:
        """Drop what is held."""
        self.restart()

    def restart(self) -> None:
        """Drop what is held, and begin again."""
        self._on_bytes(-self.size)
        self._file.seek(0)
        self._file.truncate()
        self._begin()

    @property
    def sha256(self) -> str:
        """The digest of what is held."""
        return self._sha256.hexdigest()

    @property
    def mismatch(self) -> tuple[str, str] | None:
        """What was expected and what is held, where they differ."""
        if self.size != self.entry.size:
            return self.entry.sha256 or self.entry.git_oid or "", f"{self.size:,} of {self.entry.size:,} bytes"
        if self.entry.sha256 is not None:
            return None if self.sha256 == self.entry.sha256 else (self.entry.sha256, self.sha256)
        git = self._git.hexdigest()
        return None if git == self.entry.git_oid else (self.entry.git_oid or "", git)

    def close(self) -> None:
        """Make it durable and let go of it."""
        with naming_a_full_disk(self.path.parent, self.entry.size), self._file:
            os.fsync(self._file.fileno())

    def drop(self) -> None:
        """Let go of it as it is."""
        self._file.close()


class Workspace:
    """A fetch's own folder, locked while the fetch lives; what dead ones left for the same snapshot is taken over."""

    def __init__(self, store: WeightsStore, key: str) -> None:
        self._store, self._key = store, key
        self._folder = store.incomplete / f"{key}--{secrets.token_hex(8)}"
        self._parts, self._snapshot = self._folder / "parts", self._folder / "snapshot"

    def __enter__(self) -> Self:
        with naming_a_full_disk(self._store.root, 0):
            # it gets the name by which others look for abandoned ones only when it is locked
            unseen = self._store.incomplete / f"new-{self._folder.name[-16:]}"
            (unseen / "parts").mkdir(parents=True)
            self._lock = os.open(unseen / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            unseen.rename(self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, DiskFullError):
            # a full disk is given its room back; any other failure leaves what came for the next try
            _remove(self._store, self._folder)
        os.close(self._lock)

    def part_path(self, entry: Entry) -> Path:
        """Where a content grows."""
        return self._parts / f"{entry.content}.part"

    def adopt(self, entries: Iterable[Entry]) -> None:
        """Take over what abandoned fetches of the same snapshot have; each piece is checked when it is used."""
        wanted = list(entries)
        for folder in _abandoned(self._store, self._key):
            for entry in wanted:
                self._take(folder, entry)

    def _take(self, folder: Path, entry: Entry) -> None:
        mine = self.part_path(entry)
        for found in (folder / "parts" / mine.name, folder / "snapshot" / FILES / entry.path):
            if not found.is_file() or found.is_symlink():
                continue
            if not mine.exists() or mine.stat().st_size < found.stat().st_size <= entry.size:
                found.replace(mine)

    def assemble(self, entries: Iterable[Entry], manifest: SnapshotManifest) -> None:
        """Put the verified contents in their places; the manifest comes last."""
        with naming_a_full_disk(self._store.root, 0):
            files = self._snapshot / FILES
            files.mkdir(parents=True)
            placed: dict[str, Path] = {}
            for entry in entries:
                target = files / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if entry.content in placed:  # the same content at a second path
                    shutil.copyfile(placed[entry.content], target)
                    sync_file(target)
                else:
                    placed[entry.content] = self.part_path(entry).replace(target)
            for folder in sorted({parent for path in placed.values() for parent in path.parents}):
                if folder.is_relative_to(files):
                    sync_folder(folder)
            write_new(self._snapshot / MANIFEST, manifest.to_bytes())
            sync_folder(self._snapshot)

    def publish(self) -> bool:
        """Give the snapshot its name, in one rename; false if another fetch was first."""
        with naming_a_full_disk(self._store.root, 0):
            try:
                self._snapshot.rename(self._store.folder(self._key))
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                return False
            sync_folder(self._store.snapshots)
        return True

    def set_aside(self, inode: int) -> None:
        """Take the damaged snapshot of this *inode* out of its name, unless another has mended it by now.

        Its good files are taken over like any abandoned fetch's.
        """
        grave, damaged = self._store.incomplete / f"{self._key}--{secrets.token_hex(8)}", self._store.folder(self._key)
        with naming_a_full_disk(self._store.root, 0), contextlib.suppress(FileNotFoundError):
            if damaged.stat().st_ino == inode:
                unseen = self._store.incomplete / f"new-{grave.name[-16:]}"
                unseen.mkdir()
                write_new(unseen / _LOCK, b"")
                damaged.rename(unseen / "snapshot")
                unseen.rename(grave)
                sync_folder(self._store.snapshots)


def sweep(store: WeightsStore, key: str) -> None:
    """Remove what dead fetches of a snapshot left, now that it is whole."""
    for _ in _abandoned(store, key):
        pass


def _abandoned(store: WeightsStore, key: str) -> Iterator[Path]:
    """Each folder whose fetch is dead, locked while it is looked at and removed afterwards."""
    for folder in sorted(store.incomplete.glob(f"{key}--*")):
        lock = _lock_if_abandoned(folder)
        if lock is None:
            continue
        try:
            yield folder
            _remove(store, folder)
        finally:
            os.close(lock)


def _remove(store: WeightsStore, folder: Path) -> None:
    """Take a folder out of sight first: while it is emptied, its lock is gone before its files are."""
    gone = store.incomplete / f"gone-{secrets.token_hex(8)}"
    folder.rename(gone)
    shutil.rmtree(gone)


def _lock_if_abandoned(folder: Path) -> int | None:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None  # another fetch took it over and has removed it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None  # its fetch lives
    if not _is_at(folder, lock):
        os.close(lock)
        return None  # it was taken over and removed while we asked
    return lock


def _is_at(folder: Path, lock: int) -> bool:
    try:
        return (folder / _LOCK).stat().st_ino == os.fstat(lock).st_ino
    except FileNotFoundError:
        return False
