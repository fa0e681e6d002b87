"""What a ledger says of its run, read without writing."""

from __future__ import annotations

from pathlib import Path

from gpuserve.exceptions import BatchRunError
from gpuserve.runtime.batch.committing import entry_of
from gpuserve.runtime.batch.events import BatchStatus
from gpuserve.runtime.batch.folder import TAKEOVER_AFTER_S, OutputFolder, is_driven

_AFAR_S = 60.0

__all__ = ["require_dead_letters", "retried", "status_of"]


def status_of(root: Path, *, told_as: str = "") -> BatchStatus:
    """The run in *root*.

    Args:
        root: The output folder.
        told_as: What the folder is called, where *root* is a copy of what matters in it.

    Raises:
        BatchRunError: If there is none.
    """
    folder = OutputFolder(root)
    identity = folder.identity()
    state = folder.load()
    if state.finished:
        name = "finished"
    elif state.end is not None:
        name = "stopped"
    else:
        note = folder.ledger / "driver.json"
        # what is read from a volume is a little old, and its driver is nowhere near
        driven = is_driven(
            note, owner=state.owner, after_s=_AFAR_S if told_as else TAKEOVER_AFTER_S, from_afar=bool(told_as)
        )
        name = "running" if driven else "interrupted"
    return BatchStatus(
        run_id=identity["run_id"],
        output=told_as or str(root),
        state=name,
        done=state.done,
        failed=state.failed,
        total=state.end.total if state.end is not None else None,
        shards=tuple(entry_of(one.shard) for one in state.commits if one.shard is not None),
        started_at=state.started_at,
        updated_at=state.updated_at,
        elapsed_s=state.worked_s,
        cost_usd=state.spent_usd or None,
        driver=state.driver,
        reason=state.end.reason if state.end is not None else "",
    )


def retried(number: int) -> str:
    """The folder, inside a run's own, that its dead letters are run into for that time, counted from 0."""
    return f"retried-{number:03}"


def require_dead_letters(output: str, *, finished: bool, failed: int) -> None:
    """Refuse to run dead letters again where there are none, or may be more.

    Raises:
        BatchRunError: With what to do instead.
    """
    if not finished:
        raise BatchRunError(f"{output} is not finished; run it to its end, then retry what failed")
    if not failed:
        raise BatchRunError(f"{output} has no dead letters; nothing is to be retried")
