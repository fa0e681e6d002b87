"""What a store holds, and what may go."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import WeightsNotFoundError
from gpuserve.runtime.weights.store import WeightsStore

__all__ = ["Listed", "listed", "pruned"]


@dataclass(frozen=True)
class Listed:
    """One line of a listing; ``fault`` says why the manifest cannot be read."""

    snapshot: str
    source: str
    commit: str
    size: int
    created_at: str
    fault: str = ""


def listed(store: WeightsStore) -> list[Listed]:
    """What is published, by name; not verified."""
    lines = []
    for one in store.list():
        manifest = one.manifest
        if manifest is None:
            lines.append(Listed(one.key, "", "", 0, "", one.fault))
        else:
            lines.append(Listed(one.key, str(manifest.source), manifest.commit, manifest.size, manifest.created_at))
    return lines


def pruned(store: WeightsStore, keep: Collection[str], *, apply: bool) -> list[str]:
    """Snapshots that are not to be kept, and folders that no living fetch works in.

    Raises:
        WeightsNotFoundError: If a snapshot to keep is not there: a typing error would cost the right one.
    """
    there = [one.key for one in store.list()]
    absent = sorted(set(keep) - set(there))
    if absent:
        raise WeightsNotFoundError(f"no snapshot is called {', '.join(absent)}; nothing was removed")
    gone = [key for key in there if key not in keep]
    left = [path for path in sorted(store.incomplete.glob("*")) if path.is_dir() and not _is_worked_in(path)]
    if apply:
        for key in gone:
            store.remove(key)
        for path in left:
            shutil.rmtree(path)
    return [*gone, *(f"incomplete/{path.name}" for path in left)]


def _is_worked_in(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return folder.name.startswith("new-")  # being made at this moment
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
