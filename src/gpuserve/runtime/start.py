"""What a start was made of, and what its figures advise."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["StartLimits", "StartReport", "seconds_since_process_start"]

# Source: the guide's rule for time-outs: 150 % of the worst that is expected, not of the average.
_MARGIN = 1.5
_LEAST_TIMEOUT_S = 10
# Source: the guide: 60 s of idling for endpoints that few call, Modal's own limits: 2 s to 20 minutes.
_LEAST_WINDOW_S, _MOST_WINDOW_S = 60, 1200
_STARTED_AT, _COMM_END = 19, b")"


@dataclass(frozen=True)
class StartLimits:
    """What was declared about starts, in seconds."""

    startup_timeout_s: int
    scaledown_window_s: int


@dataclass(frozen=True)
class StartReport:
    """One start, by its parts.

    Attributes:
        parts: Seconds of each, in their order; they follow each other.
        verify_s: Seconds that the weights were checked for, beside the other parts; ``None`` without weights.
        waited_s: Seconds of that which the start had to wait for.

    Examples:
        >>> start = StartReport({"import": 2.0, "load": 30.0, "to_device": 4.0, "warm_up": 4.0})
        >>> start.advised_startup_timeout_s, start.advised_scaledown_window_s
        (60, 60)
        >>> start.warnings(StartLimits(startup_timeout_s=45, scaledown_window_s=60))[0][:53]
        'startup_timeout_s=45 leaves little room: this start t'
    """

    parts: Mapping[str, float]
    verify_s: float | None = None
    waited_s: float = 0.0

    @property
    def total_s(self) -> float:
        """From the process's start until it was ready."""
        return sum(self.parts.values()) + self.waited_s

    @property
    def advised_startup_timeout_s(self) -> int:
        """150 % of what this start took."""
        return max(_LEAST_TIMEOUT_S, math.ceil(_MARGIN * self.total_s))

    @property
    def advised_scaledown_window_s(self) -> int:
        """As long as a start and a half: who idles for less pays for starts instead, and callers wait for them."""
        return min(_MOST_WINDOW_S, max(_LEAST_WINDOW_S, math.ceil(_MARGIN * self.total_s)))

    def event(self, server: str) -> dict[str, Any]:
        """The line of the log."""
        checked = {} if self.verify_s is None else {"verify": self.verify_s, "verify_waited": self.waited_s}
        return {
            "event": "ready",
            "server": server,
            **{f"{part}_s": round(spent, 3) for part, spent in (*self.parts.items(), *checked.items())},
            "total_s": round(self.total_s, 3),
            "advised_startup_timeout_s": self.advised_startup_timeout_s,
            "advised_scaledown_window_s": self.advised_scaledown_window_s,
        }

    def warnings(self, limits: StartLimits) -> list[str]:
        """What is declared too tightly for a start like this one."""
        found = []
        if limits.startup_timeout_s < _MARGIN * self.total_s:
            found.append(
                f"startup_timeout_s={limits.startup_timeout_s} leaves little room: this start took "
                f"{self.total_s:.1f} s; write startup_timeout_s = {self.advised_startup_timeout_s} or more "
                "(150 % of it)"
            )
        if limits.scaledown_window_s < self.total_s:
            found.append(
                f"scaledown_window={limits.scaledown_window_s} is shorter than this start ({self.total_s:.1f} s): "
                f"containers start more than they idle; write "
                f"scaledown_window={self.advised_scaledown_window_s} or more"
            )
        return found


def seconds_since_process_start() -> float | None:
    """How old this process is; ``None`` where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(_COMM_END)[2].split()
        begun = int(fields[_STARTED_AT]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
    except (OSError, IndexError, ValueError):
        return None
    return max(0.0, age)
