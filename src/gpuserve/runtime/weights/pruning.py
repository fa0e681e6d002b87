"""What a store holds, and what may go."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import WeightsError, WeightsNotFoundError
from gpuserve.runtime.weights.snapshot import open_snapshot
from gpuserve.runtime.weights.store import WeightsStore

__all__ = ["Listed", "listed", "pruned", "verified"]

_SHORT_LIVED_S = 3600.0


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


def verified(store: WeightsStore, snapshot: str = "") -> list[tuple[str, str]]:
    """Every snapshot, or one, and what is wrong with it; nothing where it is whole."""
    found = []
    for key in [snapshot] if snapshot else [one.key for one in store.list()]:
        try:
            open_snapshot(store.folder(key))
            found.append((key, ""))
        except WeightsError as error:
            found.append((key, str(error)))
    return found


def pruned(store: WeightsStore, keep: Collection[str], *, apply: bool) -> list[str]:
    """Snapshots that are not to be kept, and folders that no living fetch works in.

    What is in service under an alias, and what a rollback would bring back, is kept in any case.

    Raises:
        WeightsNotFoundError: If a snapshot to keep is not there: a typing error would cost the right one.
    """
    there = [one.key for one in store.list()]
    absent = sorted(set(keep) - set(there))
    if absent:
        raise WeightsNotFoundError(f"no snapshot is called {', '.join(absent)}; nothing was removed")
    held = {one.snapshot for alias in store.list_aliases() for one in alias.standing[-2:]}
    gone = [key for key in there if key not in keep and key not in held]
    left = [path for path in sorted(store.incomplete.glob("*")) if not _is_worked_in(path)]
    if apply:
        for key in gone:
            store.remove(key)
        for path in left:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return [*gone, *(f"incomplete/{path.name}" for path in left)]


def _is_worked_in(path: Path) -> bool:
    if path.name.startswith("lease-"):
        return True  # a lock must stay the file that it is, whoever holds it
    if path.name.startswith(("new-", "ref-", "gone-", "removed-")):
        # there for a moment, without a lock: an old one is a dead fetch's
        return time.time() - path.stat().st_mtime < _SHORT_LIVED_S
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
