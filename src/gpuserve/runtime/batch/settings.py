"""What a driver is told of the declaration, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gpuserve.runtime.batch.trials import RetryPolicy

__all__ = ["Settings", "Tally"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a declaration the driver needs.

    Attributes:
        window: Items that are sorted, and committed, together.
        max_outstanding: Batches that run at once.
        max_open: Windows that are under way at once.
        stop_on_bad_input: Raise at the first bad row, instead of giving it up.
        max_usd: Stop there; all drivers of the output together.
        deadline_s: Stop so long after this driver began.
        patience_s: Stop when the target was away for so long.
    """

    window: int
    max_items: int
    max_cost: float | None
    padded: bool
    cost: Callable[[Any], float]
    max_outstanding: int
    retries: RetryPolicy
    max_open: int = 4
    stop_on_bad_input: bool = False
    max_usd: float | None = None
    deadline_s: float | None = None
    patience_s: float = 600.0
    has_ids: bool = False


@dataclass(slots=True)
class Tally:
    """What this driver has done."""

    answered: int = 0
    fruitless: int = 0
    failed: int = 0
    read: int = 0
    retries: int = 0
    outstanding: int = 0
    throughput: list[tuple[float, int]] = field(default_factory=list)
