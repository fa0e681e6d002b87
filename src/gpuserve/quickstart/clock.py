"""How long each part of a run took, in the order in which the parts began."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """Measures parts by name.

    Examples:
        >>> clock = Clock()
        >>> with clock.part("nothing"):
        ...     pass
        >>> list(clock.seconds)
        ['nothing']
    """

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.seconds: dict[str, float] = {}

    @property
    def total_s(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._begun

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block."""
        self.seconds[name] = 0.0
        begun = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begun

    @contextmanager
    def meanwhile(self, name: str, work: Callable[[], object]) -> Iterator[None]:
        """Measure *work*, which runs in a thread while the block runs; the ``with`` ends when both have."""
        self.seconds[name] = 0.0

        def measured() -> None:
            with self.part(name):
                work()

        thread = ThreadPoolExecutor(1)
        done = thread.submit(measured)
        thread.shutdown(wait=False)  # broken off, the block does not wait for the work
        yield
        done.result()
