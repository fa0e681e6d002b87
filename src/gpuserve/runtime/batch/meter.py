"""What a run has cost and how fast it goes. Pure: it is told the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["CostMeter", "RateMeter"]

_RATE_OVER_S = 10.0


@dataclass(slots=True)
class CostMeter:
    """Adds up containers and time, at a price.

    Attributes:
        usd_per_container_hour: ``None`` for a target without a price.
        spent_usd: By all drivers.
    """

    usd_per_container_hour: float | None
    spent_usd: float = 0.0
    containers: int | None = None
    _at: float | None = None

    def tick(self, now: float, containers: int | None) -> None:
        """Count the time since the last tick, with the containers that ran then; one, where nobody can tell."""
        if self._at is not None and self.usd_per_container_hour is not None:
            running = self.containers if self.containers is not None else 1
            self.spent_usd += running * self.usd_per_container_hour * (now - self._at) / 3600
        self._at, self.containers = now, containers


@dataclass(slots=True)
class RateMeter:
    """Items a second over the last ten seconds.

    Examples:
        >>> meter = RateMeter()
        >>> meter.tick(0.0, 0)
        0.0
        >>> meter.tick(2.0, 100)
        50.0
    """

    _points: deque[tuple[float, int]] = field(default_factory=deque)

    def tick(self, now: float, count: int) -> float:
        """The rate, once *count* items are done at *now*."""
        self._points.append((now, count))
        while len(self._points) > 2 and now - self._points[0][0] > _RATE_OVER_S:  # noqa: PLR2004 (a span has two ends)
            self._points.popleft()
        first_at, first = self._points[0]
        return (count - first) / (now - first_at) if now > first_at else 0.0
