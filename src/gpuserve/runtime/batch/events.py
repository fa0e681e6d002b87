"""What a run tells while it goes, and what is left of it: plain frozen data for bars, reports and pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "BatchCommitted",
    "BatchEvent",
    "BatchReport",
    "BatchStatus",
    "ItemFailed",
    "OnEvent",
    "Progress",
    "RunFinished",
    "RunStarted",
    "ShardEntry",
]


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One file of committed output.

    Attributes:
        name: Its name in the output folder.
        rows: Items in it.
        bytes: Its size.
        sha256: Its digest.
    """

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A driver has taken the run up.

    Attributes:
        run_id: The same for every driver of one output folder.
        resumed: Whether another driver was here before.
        epoch: Which driver this is, from 1.
        done: Items committed already.
        failed: Items in the dead letters already.
        total: Items of the whole corpus, where the source knows.
        at: Time of day, seconds since 1970.
    """

    run_id: str
    output: str
    resumed: bool
    epoch: int
    done: int
    failed: int
    total: int | None
    at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run is; told about once a second.

    Attributes:
        done: Items answered, by all drivers together, committed or not.
        failed: Items given up, which go to the dead letters.
        read: Items read from the source.
        total: Items of the whole corpus: known, or estimated from the bytes that were read; ``None`` before that.
        outstanding: Batches that run now.
        items_per_s: Items answered a second, over the last ten.
        eta_s: Seconds that are left at that rate.
        cost_usd: Spent so far by all drivers, at list prices; ``None`` where the target has no price.
        containers: Containers of the target that run now; ``None`` where nobody can tell.
        retries: Batches that were run again, whatever for.
        elapsed_s: Since this driver began.
    """

    done: int
    failed: int
    read: int
    total: int | None
    outstanding: int
    items_per_s: float
    eta_s: float | None
    cost_usd: float | None
    containers: int | None
    retries: int
    elapsed_s: float
    at: float


@dataclass(frozen=True, slots=True)
class BatchCommitted:
    """A window of the input is settled: its shard is durable, and the ledger says so.

    Attributes:
        window: Its number, from 0.
        items: Items of it that were answered.
        failed: Items of it that went to the dead letters.
        shard: Its file; ``None`` where no item was answered.
    """

    window: int
    items: int
    failed: int
    shard: ShardEntry | None
    at: float


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """An item is given up; it will be among the dead letters of its window.

    Attributes:
        attempts: How often it was run.
        where: File and row that it was read from.
    """

    id: str | int
    position: int
    where: str
    error_type: str
    message: str
    attempts: int
    at: float


@dataclass(frozen=True, slots=True)
class BatchReport:
    """How a driver's run ended.

    Attributes:
        status: ``finished``, or ``stopped`` with work left.
        reason: Why it stopped: ``budget``, ``deadline``, ``interrupted`` or ``unreachable``; empty if it finished.
        done: Items committed by all drivers of this output.
        failed: Items in the dead letters.
        total: Items of the corpus, known once it was read to its end.
        elapsed_s: Seconds of this driver.
        items_per_s: Items that this driver committed a second.
        cost_usd: Of all drivers, at list prices; ``None`` where the target has no price.
        retries: Batches that this driver ran again.
        shards: Every committed file, in input order.
        dead_letters: The file of items that were given up; empty if there are none.
        throughput: Seconds since the start and items answered by then, about once a second.
        how_to_go_on: What to do next, in one sentence; empty if nothing is left.
    """

    run_id: str
    output: str
    status: str
    reason: str
    done: int
    failed: int
    total: int | None
    elapsed_s: float
    items_per_s: float
    cost_usd: float | None
    retries: int
    shards: tuple[ShardEntry, ...]
    dead_letters: str
    throughput: tuple[tuple[float, int], ...]
    how_to_go_on: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The driver has ended; nothing comes after this."""

    report: BatchReport
    at: float


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """What the ledger says of a run, whoever drives it.

    Attributes:
        state: ``running``, ``finished``, ``stopped`` (work is left) or ``interrupted`` (its driver is gone).
        done: Items committed.
        failed: Items in the dead letters.
        total: Items of the corpus, once they were all read.
        elapsed_s: Seconds that drivers have worked on it.
        driver: Who drives or drove it last.
        reason: Why it stopped.
    """

    run_id: str
    output: str
    state: str
    done: int
    failed: int
    total: int | None
    shards: tuple[ShardEntry, ...]
    started_at: float
    updated_at: float
    elapsed_s: float
    cost_usd: float | None
    driver: str
    reason: str


BatchEvent = RunStarted | Progress | BatchCommitted | ItemFailed | RunFinished
OnEvent = Callable[[BatchEvent], None]
