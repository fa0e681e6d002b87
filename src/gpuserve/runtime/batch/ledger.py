"""What has happened to a run, as a fold over its records. Pure: this decides what counts, and touches no file.

The ledger is one append-only file that every driver of an output appends to; the order of its records is the truth.
A driver begins with a record that names it, and from there on only its own records count. So a driver that was stopped,
was succeeded and woke up again can append what it likes: it comes after its successor's beginning, and is void.

Windows are committed in their order, so that all of a run is: up to here everything is settled. A commit names its
files by the names that they were written under. It counts once its record is in the file; only then are the files given
their own names, by whoever comes first, the driver or its successor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["Begin", "Commit", "End", "LedgerState", "PublishedFile", "Record", "fold", "record_of", "written"]


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a committed window.

    Attributes:
        name: Its name in the output folder.
        temporary: The name that it was written under.
        rows: Items in it.
    """

    name: str
    temporary: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Begin:
    """A driver takes the run over.

    Attributes:
        owner: Tells it from every other one.
        driver: Who that is, for people.
    """

    owner: str
    driver: str
    at: float


@dataclass(frozen=True, slots=True)
class Commit:
    """A window is settled.

    Attributes:
        rows: Rows of the input that it holds, bad ones included.
        done: Items answered.
        failed: Items given up.
        shard: The file of its answers.
        dead: The file of its dead letters.
        fingerprint: Of its input, to know it again.
        cursor: Where the source goes on.
        schema: The type of the answers, where the format needs one that holds for all shards.
        spent_usd: What all drivers have spent by now.
        worked_s: How long all drivers have worked by now.
    """

    owner: str
    window: int
    rows: int
    done: int
    failed: int
    shard: PublishedFile | None
    dead: PublishedFile | None
    fingerprint: str
    cursor: dict[str, Any]
    schema: str
    spent_usd: float
    worked_s: float
    at: float


@dataclass(frozen=True, slots=True)
class End:
    """A driver leaves in order.

    Attributes:
        reason: Why, if work is left; empty once all is committed.
        total: Items of the corpus, where it was read to its end.
    """

    owner: str
    reason: str
    total: int | None
    spent_usd: float
    worked_s: float
    at: float


Record = Begin | Commit | End
_KINDS: dict[str, type[Begin | Commit | End]] = {"begin": Begin, "commit": Commit, "end": End}


@dataclass(frozen=True, slots=True)
class LedgerState:
    """All that is known of a run.

    Attributes:
        owner: The driver whose records count now.
        epoch: How many drivers there were.
        commits: One a window, in order.
        end: How the last driver left; ``None`` while it works, and if it was killed.
    """

    owner: str = ""
    driver: str = ""
    epoch: int = 0
    commits: list[Commit] = field(default_factory=list)
    end: End | None = None
    started_at: float = 0.0
    updated_at: float = 0.0
    rows: int = 0
    done: int = 0
    failed: int = 0
    spent_usd: float = 0.0
    worked_s: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether every item of the corpus is settled."""
        return self.end is not None and not self.end.reason

    @property
    def schema(self) -> str:
        """The type of the answers, as the first shard that has any has fixed it."""
        return next((one.schema for one in self.commits if one.schema), "")


def fold(state: LedgerState, record: Record) -> LedgerState:
    """The state after one more record; a record that does not count changes nothing."""
    if isinstance(record, Begin):
        return replace(
            state,
            owner=record.owner,
            driver=record.driver,
            epoch=state.epoch + 1,
            end=state.end if state.finished else None,
            started_at=state.started_at or record.at,
            updated_at=record.at,
        )
    if record.owner != state.owner or state.end is not None:
        return state
    if isinstance(record, Commit):
        if record.window != len(state.commits):
            return state
        state.commits.append(record)  # one list for the whole fold: a copy a window would be quadratic
        return replace(
            state,
            rows=state.rows + record.rows,
            done=state.done + record.done,
            failed=state.failed + record.failed,
            spent_usd=record.spent_usd,
            worked_s=record.worked_s,
            updated_at=record.at,
        )
    return replace(state, end=record, spent_usd=record.spent_usd, worked_s=record.worked_s, updated_at=record.at)


def folded(records: Iterable[Record], state: LedgerState | None = None) -> LedgerState:
    """The state after all *records*."""
    found = state if state is not None else LedgerState()
    for record in records:
        found = fold(found, record)
    return found


def written(record: Record) -> dict[str, Any]:
    """A record as JSON."""
    kind = next(name for name, one in _KINDS.items() if one is type(record))
    values = {name: getattr(record, name) for name in record.__slots__}
    for name in ("shard", "dead"):
        file = values.get(name)
        if file is not None:
            values[name] = {one: getattr(file, one) for one in file.__slots__}
    return {"kind": kind, **values}


def record_of(values: dict[str, Any]) -> Record | None:
    """The record that JSON stands for; ``None`` for a kind that a later release has added."""
    kind = _KINDS.get(values.get("kind", ""))
    if kind is None:
        return None
    known = {name: values.get(name) for name in kind.__slots__}
    for name in ("shard", "dead"):
        if known.get(name) is not None:
            known[name] = PublishedFile(**known[name])  # type: ignore[arg-type]
    return kind(**known)  # type: ignore[arg-type]
