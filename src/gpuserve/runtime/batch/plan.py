"""Which items of a window run together: sorted by cost, and batches of like cost. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["characters", "cost_function", "plan_batches", "tokens"]

# Words, and every other visible mark by itself: about what a tokenizer makes of prose.
_TOKEN = re.compile(r"\w+|[^\w\s]")


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return []


def characters(value: Any) -> float:
    """Characters of all text in an item; 1 where there is none.

    Examples:
        >>> characters({"title": "ab", "body": "cde"})
        5.0
    """
    return float(sum(map(len, _texts(value))) or 1)


def tokens(value: Any) -> float:
    """Words and marks of all text in an item: near what a tokenizer makes of it, without one; 1 where there is none.

    Examples:
        >>> tokens("to be, or not")
        5.0
    """
    return float(sum(len(_TOKEN.findall(text)) for text in _texts(value)) or 1)


def cost_function(cost: str | Callable[[Any], float]) -> Callable[[Any], float]:
    """The function that ``cost=`` names."""
    if callable(cost):
        return cost
    return {"items": lambda _value: 1.0, "characters": characters, "tokens": tokens}[cost]


def plan_batches(
    costs: Sequence[float], *, max_items: int, max_cost: float | None = None, padded: bool = True
) -> list[tuple[int, ...]]:
    """Part the items of a window into batches: like beside like, and each batch about as dear as any other.

    Items are sorted by cost, so that a batch pads little. Without *max_cost*, a batch may cost what the window costs
    divided by as many batches as *max_items* makes necessary.

    Args:
        costs: What each item costs, by its place in the window.
        max_items: Items in a batch at most.
        max_cost: The cost of a batch at most; an item that costs more runs alone.
        padded: Whether a batch costs its number of items times its dearest one, as padded tensors do.

    Returns:
        The places of each batch's items, dearest batch first, so that no long one is left for the end.

    Examples:
        >>> plan_batches([9, 1, 1, 8, 1], max_items=3, max_cost=20)
        [(3, 0), (1, 2, 4)]
    """
    if not costs:
        return []
    order = sorted(range(len(costs)), key=costs.__getitem__)
    if max_cost is None:
        even = sum(costs) / math.ceil(len(costs) / max_items)
        max_cost = even * (1 + 1e-9)  # a sum of fractions may be a little more than what they make together
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    total = 0.0
    for place in order:
        cost = costs[place]
        with_it = cost * (len(batch) + 1) if padded else total + cost
        if batch and (len(batch) == max_items or with_it > max_cost):
            batches.append(tuple(batch))
            batch, total = [], 0.0
        batch.append(place)
        total += cost
    batches.append(tuple(batch))
    return batches[::-1]
