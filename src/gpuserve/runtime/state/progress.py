"""How far a run is, told by its containers and read by anybody."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gpuserve.exceptions import DeclarationError
from gpuserve.runtime.state.entries import Entries, entries_of
from gpuserve.runtime.state.shares import Shares, add_up

__all__ = ["Progress", "ProgressReport"]

_TOTAL = "total"
_ACTIVE_S = 60.0
"""A writer that wrote within so many seconds counts as active."""


@dataclass(frozen=True)
class ProgressReport:
    """How far a run was when it was asked.

    Attributes:
        done: Items that are done.
        failed: Items that failed.
        total: Items that there are, or ``None`` where nobody has said.
        writers: Processes that told anything so far.
        active: How many of them did within the last minute.
        elapsed_s: Seconds from the first word to the last.
    """

    done: int
    failed: int
    total: int | None
    writers: int
    active: int
    elapsed_s: float

    @property
    def rate_per_s(self) -> float:
        """Items a second, failed ones included; 0 before there are two words to tell it from."""
        return (self.done + self.failed) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds that the rest takes at this rate; ``None`` where it cannot be told."""
        if self.total is None or self.rate_per_s <= 0:
            return None
        return max(0, self.total - self.done - self.failed) / self.rate_per_s

    def __str__(self) -> str:
        """One line.

        Examples:
            >>> print(ProgressReport(done=450, failed=50, total=2000, writers=4, active=3, elapsed_s=10))
            500 of 2,000 (50 failed), 50.0/s, 30 s left, 3 active
        """
        told = f"{self.done + self.failed:,}" + (f" of {self.total:,}" if self.total is not None else "")
        failed = f" ({self.failed:,} failed)" if self.failed else ""
        left = f", {self.eta_s:.0f} s left" if self.eta_s is not None else ""
        return f"{told}{failed}, {self.rate_per_s:.1f}/s{left}, {self.active} active"


class Progress:
    """How far a run is: told by the containers that do it, read by the driver or by anybody.

    *Consistency.* Each process writes its own sums, at most every *every_s* seconds and at the end of the ``with``
    block, so that telling costs nothing where there is little to tell. What a reader sees is never more than was told
    and lags by as long as a writer is silent; a process that is killed takes with it what it had not written. An input
    that runs again tells again. So this is for looking at, not for bookkeeping: what must be exact is a `Counter` with
    ``once=``.

    *Life.* Seven idle days. A new run takes a new name.

    Args:
        name: All that give the same name share it; up to 47 letters, digits, dashes, dots and underscores.
        every_s: Seconds between writes of one process, 0 to 3600.
        entries: Where it is kept, in place of the ``modal.Dict`` ``gpuserve-progress-NAME``.

    Raises:
        DeclarationError: If one of them is out of range.

    Examples:
        >>> from gpuserve.runtime.state import MemoryEntries
        >>> run = Progress("tonight", entries=MemoryEntries())
        >>> run.expect(3)
        >>> with run:
        ...     run.advance(2); run.advance(failed=1)
        >>> run.report().done, run.report().failed, run.report().total
        (2, 1, 3)
    """

    def __init__(
        self,
        name: str,
        *,
        every_s: float = 1.0,
        entries: Entries | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        longest_s = 3600
        faults: tuple[str, ...] = ()
        if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not 0 <= every_s <= longest_s:
            faults = (f"every_s got {every_s!r}: seconds, 0 to {longest_s}",)
        self._entries = entries_of("progress", name, entries, faults)
        self._declared = name, every_s, entries
        self._clock = clock
        self._shares = Shares(self._entries, 2, every_s, clock)

    def expect(self, total: int) -> None:
        """Say how many items there are; the last word holds.

        Raises:
            DeclarationError: If it is no count.
        """
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            raise DeclarationError("this progress", (f"total got {total!r}: a whole number, 0 or more",))
        self._entries.put(_TOTAL, total)

    def advance(self, done: int = 0, *, failed: int = 0) -> None:
        """Tell that so many more are done, or failed; a round trip only every *every_s* seconds."""
        self._shares.add((done, failed), now=False)

    def flush(self) -> None:
        """Write what was told and not written yet."""
        self._shares.flush()

    def report(self) -> ProgressReport:
        """How far the run is."""
        shares, now = add_up(self._entries), self._clock()
        started = min((share.since for share in shares), default=0.0)
        return ProgressReport(
            done=sum(share.amounts[0] for share in shares),
            failed=sum(share.amounts[1] for share in shares),
            total=self._entries.get(_TOTAL),
            writers=len(shares),
            active=sum(now - share.at < _ACTIVE_S for share in shares),
            elapsed_s=max((share.at for share in shares), default=0.0) - started,
        )

    def __enter__(self) -> Self:
        """Begin to tell."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is left."""
        self.flush()

    def __reduce__(self) -> tuple[Callable[..., Progress], tuple[str, float, Entries | None]]:
        """By name, since a notebook's functions take what they use along."""
        return _progress, self._declared


def _progress(name: str, every_s: float, entries: Entries | None) -> Progress:
    return Progress(name, every_s=every_s, entries=entries)
