"""Finds and kills every process that a container started, daemons included.

A child that left its session and its parent still carries ``MODAL_TASK_ID`` in the environment that
it was started with, or is a child of one that does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

__all__ = ["kill_tree", "processes_of"]

_ROUNDS = 20


def processes_of(root: int, task_id: str) -> set[int]:
    """The pids of a container: *root*, its descendants, and whatever carries its task id."""
    parents: dict[int, int] = {}
    marked: set[int] = set()
    marker = f"MODAL_TASK_ID={task_id}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError, ValueError):
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if marker in (entry / "environ").read_bytes().split(b"\0"):
                marked.add(pid)
    found = marked | ({root} if root in parents else set())
    grew = True
    while grew:
        fresh = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        grew = bool(fresh)
        found |= fresh
    found.discard(os.getpid())
    return found


def kill_tree(root: int, task_id: str) -> None:
    """SIGKILL all of a container's processes, again until none is left that could start another."""
    for _ in range(_ROUNDS):
        alive = {pid for pid in processes_of(root, task_id) if not _is_dead(pid)}
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
