"""Files that are either wholly there or not at all, also after a power cut."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["place_file", "sync_folder", "write_durably"]


def sync_folder(folder: Path) -> None:
    """Make names that were added to *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_file(temporary: Path, target: Path) -> None:
    """Move a finished, synced file to its name."""
    temporary.replace(target)
    sync_folder(target.parent)


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
