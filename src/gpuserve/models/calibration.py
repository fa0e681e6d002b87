"""Which setting a device is fastest with, found within seconds and beside neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["fastest"]

Choice = TypeVar("Choice")


def fastest(
    candidates: Sequence[Choice],
    seconds: Callable[[Choice], float],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """The candidate that takes least time.

    Every candidate is measured once however long that takes: a choice among those that a busy machine came to in time
    would be a choice of the first. Then all of them are measured again while another round fits into the budget, and
    each counts with its fastest, so that a neighbour's moment hurts one round and not one candidate.

    Args:
        candidates: What to choose from.
        seconds: Runs one and says how many seconds it took.
        budget_s: Seconds that further rounds may take, the first included.
        clock: Tells the time in seconds.

    Returns:
        The fastest; of equals the first.

    Examples:
        >>> fastest([1, 2, 4], lambda batch: 1 / batch, budget_s=0)
        4
    """
    best = [float("inf")] * len(candidates)
    began = clock()
    while True:
        for place, one in enumerate(candidates):
            best[place] = min(best[place], seconds(one))
        if clock() - began + sum(best) > budget_s:
            return candidates[best.index(min(best))]
