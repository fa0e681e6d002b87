"""How often each key may call: a token bucket each, told the time by whoever asks."""

from __future__ import annotations

from gpuserve.exceptions import RequestError

__all__ = ["RateLimit"]


class RateLimit:
    """One bucket a key: full at first, filled evenly, emptied by one a request.

    Examples:
        >>> limit = RateLimit(requests_per_minute=60, burst=2)
        >>> [round(limit.wait_s("ci", now=0.0), 3) for _ in range(3)]
        [0.0, 0.0, 1.0]
        >>> limit.wait_s("ci", now=1.0), limit.wait_s("ops", now=1.0)
        (0.0, 0.0)
    """

    def __init__(self, requests_per_minute: int, burst: int | None = None) -> None:
        """*burst* is what a second brings unless it is given."""
        self._per_minute = requests_per_minute
        self._per_second = requests_per_minute / 60
        self._burst = burst if burst is not None else max(1, round(self._per_second))
        self._levels: dict[str, tuple[float, float]] = {}

    def wait_s(self, key: str, now: float) -> float:
        """Take one: 0 if *key* may call at *now*, else the seconds until it may, and nothing is taken."""
        level, since = self._levels.get(key, (float(self._burst), now))
        # a little more, so that who waits as long as told is not refused for a rounding
        level = min(self._burst, level + max(0.0, now - since) * self._per_second + 1e-9)
        if level < 1:
            self._levels[key] = level, now
            return (1 - level) / self._per_second
        self._levels[key] = level - 1, now
        return 0.0

    def check(self, key: str, now: float) -> None:
        """Take one.

        Raises:
            RequestError: 429 with what is allowed, if *key* called too often.
        """
        wait = self.wait_s(key, now)
        if wait > 0:
            allowed = f"{self._per_minute} requests a minute, {self._burst} at once"
            raise RequestError(f"the key {key!r} may send {allowed}; try again later", "rate_limited", 429, wait)
