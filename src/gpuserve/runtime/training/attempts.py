"""When an attempt stops: before its time-out, or because its container is to go. Decisions, without a clock."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["AttemptClock", "Interruption"]


@dataclass
class AttemptClock:
    """Tells whether there is time for one more step and a checkpoint.

    Attributes:
        began: When the attempt did, on a clock that never goes back, in seconds.
        timeout_s: Seconds that it may take.
        stop_before_s: Seconds to leave unused at the end.

    Examples:
        >>> clock = AttemptClock(began=0.0, timeout_s=100, stop_before_s=10)
        >>> clock.step_ended(30.0), clock.must_stop(30.0)  # the start and the first step took 30 s
        (None, False)
        >>> clock.step_ended(60.0), clock.must_stop(60.0)  # another 30 s would just fit
        (None, False)
        >>> clock.step_ended(62.0), clock.must_stop(62.0)
        (None, True)
    """

    began: float
    timeout_s: float
    stop_before_s: float
    _last: float | None = field(default=None, init=False)
    _longest_step_s: float = field(default=0.0, init=False)
    _longest_save_s: float = field(default=0.0, init=False)

    def step_ended(self, now: float) -> None:
        """One more step is done."""
        since = self._last if self._last is not None else self.began
        self._longest_step_s = max(self._longest_step_s, now - since)
        self._last = now

    def other_ended(self, now: float) -> None:
        """An evaluation or something else that is no step is done."""
        self._last = now

    def save_took(self, seconds: float, now: float) -> None:
        """A checkpoint is written."""
        self._longest_save_s = max(self._longest_save_s, seconds)
        self._last = now

    def must_stop(self, now: float) -> bool:
        """Whether one more step like the longest, and a checkpoint like the longest, may not fit."""
        left = self.began + self.timeout_s - self.stop_before_s - now
        return self._longest_step_s + self._longest_save_s > left


class Interruption:
    """Modal's SIGINT to a container that is to go: noted, so that the step under way ends with a checkpoint.

    A second one breaks off at once. Outside the main thread no signal can be caught, and nothing is done.

    Examples:
        >>> import signal
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interruption.asked
        True
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
