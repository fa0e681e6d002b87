"""The single steps on disk: durable writes, a full disk told as such, digests of plain files alone."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpuserve.exceptions import DiskFullError, WeightsCorruptError

__all__ = [
    "files_below",
    "free_bytes",
    "naming_a_full_disk",
    "read_plain",
    "sha256_of",
    "sync_file",
    "sync_folder",
    "write_new",
]

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(folder: Path) -> int | None:
    """Bytes free where *folder* lies, or is to lie; ``None`` where the file system does not tell."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    found = shutil.disk_usage(folder)
    return found.free if found.total else None


@contextmanager
def naming_a_full_disk(folder: Path, need: int) -> Iterator[None]:
    """Turn the system's "no space left" into an error that says where, and how much is needed.

    Raises:
        DiskFullError: If the disk, or the quota on it, is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(str(folder), need, free_bytes(folder) or 0) from error


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make names that were added to *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _plain(path: Path, name: str) -> io.BufferedReader:
    """Open a plain file; a link is not followed, and a pipe is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise WeightsCorruptError(name, "it is a symbolic link") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WeightsCorruptError(name, "it is not a plain file")
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, name: str, limit: int) -> bytes:
    """A small plain file, whole.

    Raises:
        WeightsCorruptError: If it is a link, a pipe, a device, or longer than *limit* bytes.
    """
    with _plain(path, name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise WeightsCorruptError(name, f"it is longer than {limit:,} bytes")
    return data


def sha256_of(path: Path, name: str) -> str:
    """The sha256 of a plain file, never of what a link leads to.

    Raises:
        WeightsCorruptError: If it is a link, a pipe or a device.
    """
    with _plain(path, name) as file:
        digest = hashlib.sha256()
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def files_below(folder: Path) -> dict[str, int]:
    """Every file below *folder* and its size, by its path in it.

    Raises:
        WeightsCorruptError: If there is a link, a pipe, a device, or a folder with nothing in it.
    """
    found: dict[str, int] = {}
    waiting = [(folder, "")]
    while waiting:
        current, prefix = waiting.pop()
        with os.scandir(current) as entries:
            listed = list(entries)
        if not listed and prefix:
            raise WeightsCorruptError(prefix.rstrip("/"), "it is a folder with nothing in it")
        for entry in listed:
            name = prefix + entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                waiting.append((Path(entry.path), name + "/"))
            elif stat.S_ISREG(mode):
                found[name] = entry.stat(follow_symlinks=False).st_size
            else:
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise WeightsCorruptError(name, f"it is {kind}")
    return found
