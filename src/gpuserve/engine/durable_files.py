"""Files that are either wholly there or not at all, also after a power cut."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "copy_durably",
    "make_folder",
    "place_file",
    "place_files",
    "remove",
    "sync_folder",
    "sync_volume",
    "write_durably",
]


def sync_folder(folder: Path) -> None:
    """Make names that were added to *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make *folder* and what is missing above it, each with its name on disk."""
    missing = []
    above = folder
    while not above.exists():
        missing.append(above)
        above = above.parent
    for one in reversed(missing):
        one.mkdir(mode=mode, exist_ok=True)
        sync_folder(one.parent)
    if not missing:
        folder.mkdir(mode=mode, exist_ok=True)  # says so if there is something else of that name


def place_file(finished: Path, target: Path) -> None:
    """Move a finished, synced file to its name."""
    finished.replace(target)
    sync_folder(target.parent)


def place_files(moves: Iterable[tuple[Path, Path]], root: Path) -> None:
    """Move finished, synced files to their names below *root*; those that were moved before are left alone."""
    folders: set[Path] = set()
    for finished, target in moves:
        make_folder(target.parent, 0o755)
        if finished.is_dir() and target.is_dir():
            remove(finished)
        elif finished.exists():
            finished.replace(target)
        # up to the root: a folder on the way may have been made by somebody who did not sync it
        folders.update(one for one in target.parents if one.is_relative_to(root))
    for folder in sorted(folders, key=lambda one: -len(one.parts)):
        sync_folder(folder)


def write_durably(target: Path, data: bytes, mode: int = 0o644) -> None:
    """Write *data* under *target*'s name in one step."""
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        place_file(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def copy_durably(source: Path, target: Path, mode: int) -> None:
    """Make a copy of *source* under *target*'s name in one step."""
    temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        shutil.copyfile(source, temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        place_file(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_volume(folder: Path) -> None:
    """Make everything that was written on *folder*'s file system durable; may take seconds.

    Raises:
        OSError: If the disk could not take what was written (Linux 5.8 and later).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"syncing the file system of a volume: {os.strerror(number)}")
    finally:
        os.close(descriptor)
