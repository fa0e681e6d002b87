"""How often all containers together may do something: a token bucket whose tokens are entries of a Dict."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpuserve.exceptions import DeadlineError
from gpuserve.runtime.state.entries import Entries, entries_of

__all__ = ["RateLimiter"]

_KEPT_S = 60.0
"""Tokens are kept for so long after they can be taken last, so that a clock that is late does not take one again."""
_LONGEST_BURST = 1000
_LIFE_S = 7 * 86_400.0
"""How long Modal keeps an entry that nobody touches (modal 1.6.4, `modal.Dict`)."""
_KEYS = 1000
"""Keys of which is remembered what is taken; without it a try more is made."""


class RateLimiter:
    """A limit on how often all containers together may begin something, such as a call of an API with a quota.

    Time is cut into tokens, one every ``1 / rate_per_s`` seconds; each may be taken once, from its time on until
    *burst* later ones have come. Taking one is an atomic store-unless-there.

    *Consistency.* In any span of T seconds of the same clock at most ``rate_per_s * T + burst + 1`` begin, over all
    containers, however many there are; a clock that is off by d seconds adds at most ``rate_per_s * d``. A container
    that dies with a token has used it up. It is no queue: who waits longest is not served first. Each try is a round
    trip, so that Modal's own latency bounds what one caller can begin in a second.

    *Life.* Tokens are removed about a minute after their time by whoever takes later ones, and vanish after seven
    idle days otherwise.

    Args:
        name: All that give the same name share the limit; up to 47 letters, digits, dashes, dots and underscores.
            Give them the same rate and burst, too.
        rate_per_s: How many may begin in a second in the long run, e.g. ``100 / 60`` for a hundred a minute.
        burst: How many may begin at once after a pause, 1 to 1000.
        entries: Where it is kept, in place of the ``modal.Dict`` ``gpuserve-rate-NAME``.

    Raises:
        DeclarationError: If one of them is out of range.

    Examples:
        >>> from gpuserve.runtime.state import MemoryEntries
        >>> now = [100.0]
        >>> limiter = RateLimiter("api", rate_per_s=2, burst=2, entries=MemoryEntries(), clock=lambda: now[0])
        >>> [limiter.wait_s() for _ in range(3)]
        [0.0, 0.0, 0.5]
        >>> now[0] = 100.5
        >>> limiter.wait_s()
        0.0
    """

    def __init__(
        self,
        name: str,
        *,
        rate_per_s: float,
        burst: int = 1,
        entries: Entries | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries = entries_of("rate", name, entries, _faults(rate_per_s, burst))
        self._declared = name, rate_per_s, burst, entries
        self._rate, self._burst, self._clock = rate_per_s, burst, clock
        self._kept = burst + math.ceil(_KEPT_S * rate_per_s)
        self._gone: dict[str, set[int]] = {}  # by key, the tokens of now that are known to be taken

    def wait_s(self, key: str = "") -> float:
        """Take a token: 0 if one was there, else the seconds until the next one comes, and nothing is taken.

        Args:
            key: Each key has a bucket of its own, e.g. one a customer.
        """
        now = self._clock()
        newest = math.floor(now * self._rate)
        usable = range(newest - self._burst + 1, newest + 1)
        gone = self._gone.pop(key, set()) & set(usable)
        self._gone = {key: gone} if len(self._gone) >= _KEYS else {**self._gone, key: gone}
        free = [token for token in usable if token not in gone]
        random.shuffle(free)  # so that containers do not all try the same one
        for token in free:
            gone.add(token)
            if self._entries.put_new(f"{key}/{token}", now):
                self._entries.remove(f"{key}/{token - self._kept}")
                return 0.0
        return max((newest + 1) / self._rate - now, 0.0)

    def acquire(self, key: str = "", *, timeout_s: float | None = None) -> None:
        """Take a token, and wait until one is there.

        Args:
            key: Each key has a bucket of its own.
            timeout_s: Seconds to wait at most.

        Raises:
            DeadlineError: If none came in time; nothing was taken.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        nothing = threading.Event()
        while (wait := self.wait_s(key)) > 0:
            if time.monotonic() + wait > until:
                raise DeadlineError(
                    f"{self._declared[0]!r} allows {self._rate:g} a second and {self._burst} at once, and "
                    f"none was free within {timeout_s:g} s",
                    "rate_limited",
                    429,
                    wait,
                )
            nothing.wait(wait)

    @contextmanager
    def slot(self, key: str = "", *, timeout_s: float | None = None) -> Iterator[None]:
        """`acquire`, as a block: ``with limiter.slot(): call()``."""
        self.acquire(key, timeout_s=timeout_s)
        yield

    def __reduce__(self) -> tuple[Callable[..., RateLimiter], tuple[str, float, int, Entries | None]]:
        """By name, since a notebook's functions take what they use along."""
        return _rate_limiter, self._declared


def _faults(rate_per_s: Any, burst: Any) -> tuple[str, ...]:
    faults: list[str] = []
    number = isinstance(rate_per_s, int | float) and not isinstance(rate_per_s, bool)
    if not number or not math.isfinite(rate_per_s) or rate_per_s <= 0:
        faults.append(f"rate_per_s got {rate_per_s!r}: a number above 0, as in 100 / 60 for a hundred a minute")
    elif isinstance(burst, int) and burst / rate_per_s > _LIFE_S:
        faults.append(f"rate_per_s got {rate_per_s!r}: {burst} tokens would outlive the seven days of a Dict's entries")
    if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= _LONGEST_BURST:
        faults.append(f"burst got {burst!r}: a whole number from 1 to {_LONGEST_BURST}")
    return tuple(faults)


def _rate_limiter(name: str, rate_per_s: float, burst: int, entries: Entries | None) -> RateLimiter:
    return RateLimiter(name, rate_per_s=rate_per_s, burst=burst, entries=entries)
