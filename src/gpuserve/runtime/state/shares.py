"""A sum that many write: each writer has an entry of its own with all that it ever added, and a reader adds them up."""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpuserve.runtime.state.entries import Entries

__all__ = ["Share", "Shares", "add_up"]

_SHARE = "share/"


@dataclass(frozen=True)
class Share:
    """What one writer added so far.

    Attributes:
        amounts: One sum a quantity.
        since: When it first added, in seconds of the epoch by its own clock.
        at: When it last wrote.
    """

    amounts: tuple[int, ...]
    since: float
    at: float

    def packed(self) -> tuple[tuple[int, ...], float, float]:
        """As it is stored: no class of ours, so that another release reads it."""
        return self.amounts, self.since, self.at


class Shares:
    """The writer's side, for this process.

    A process that was forked, or that was restored from a snapshot of memory in another container, is another writer:
    two that wrote one entry would undo each other.

    Args:
        entries: Where they are.
        quantities: How many sums are kept side by side.
        every_s: Seconds between writes; 0 writes each time. What comes in between is written by the next
            `add` after it, or by `flush`.
        clock: Seconds of the epoch.
    """

    def __init__(
        self, entries: Entries, quantities: int, every_s: float = 0.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._entries, self._every_s, self._clock = entries, every_s, clock
        self._zero = (0,) * quantities
        self._adding, self._writing = threading.Lock(), threading.Lock()
        self._identity: tuple[str, int] | None = None
        self._begin()

    def _begin(self) -> None:
        self._key = _SHARE + secrets.token_hex(8)
        self._amounts, self._since = self._zero, math.nan
        self._added = self._written = 0  # how many additions there were, and how many of them are stored
        self._written_at = -math.inf

    def add(self, amounts: tuple[int, ...], *, now: bool = True) -> None:
        """Add; with *now* it is stored when this returns, else at the latest by the first call after `every_s`.

        Where it raises, nothing of *amounts* will be in a later write of this writer.
        """
        with self._adding:
            if self._identity != _here():
                self._identity = _here()
                self._writing = threading.Lock()  # a thread that held it has not come along
                self._begin()
            if math.isnan(self._since):
                self._since = self._clock()
            self._amounts = tuple(a + b for a, b in zip(self._amounts, amounts, strict=True))
            self._added += 1
            place = self._added
        if now or self._clock() - self._written_at >= self._every_s:
            self._write(place, amounts)

    def flush(self) -> None:
        """Store what is not stored yet."""
        if self._identity == _here():
            self._write(self._added, self._zero)

    def _write(self, place: int, undone: tuple[int, ...]) -> None:
        with self._writing:  # one write at a time, or an older sum might be the last to arrive
            if self._written >= place:
                return  # a write that began after it was added had it
            with self._adding:
                amounts, added = self._amounts, self._added
            at = self._clock()
            try:
                self._entries.put(self._key, Share(amounts, self._since, at).packed())
            except BaseException:
                with self._adding:
                    self._amounts = tuple(a - b for a, b in zip(self._amounts, undone, strict=True))
                raise
            self._written, self._written_at = added, at


def _here() -> tuple[str, int]:
    return os.environ.get("MODAL_TASK_ID", ""), os.getpid()


def add_up(entries: Entries) -> list[Share]:
    """Every writer's share."""
    shares: list[Share] = []
    for key, value in entries.items():
        if key.startswith(_SHARE):
            amounts, since, at = _checked(key, value)
            shares.append(Share(amounts, since, at))
    return shares


def _checked(key: str, value: Any) -> tuple[tuple[int, ...], float, float]:
    if not (isinstance(value, tuple) and len(value) == len(Share.__dataclass_fields__)):
        raise ValueError(f"the entry {key!r} was not written by gpuserve; give this state a name of its own")
    return value
