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
    """A container that is to go, or a call that is cancelled: noted, so that the step under way ends with a checkpoint.

    Modal says the one with SIGINT and the other with SIGUSR1. `give_way` then does what the signal would have done at
    once. Outside the main thread no signal can be caught, and nothing is done.

    Args:
        patient: Whether signals after the first are left aside, as in a container, which is told again and again and
            is killed if it takes too long; otherwise the second one, which somebody sends by hand, breaks off at once.

    Examples:
        >>> import signal
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interruption.asked
        True
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.asked = False
        self._patient = patient
        self._by: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
            if callable(signal.getsignal(signal.SIGUSR1)):  # otherwise it is not Modal's, and means something else
                self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def give_way(self) -> None:
        """Let the noted signal have its effect; nothing if there was none.

        Raises:
            BaseException: What its own handler raises: KeyboardInterrupt, or Modal's cancellation.
            KeyboardInterrupt: Where that handler raises nothing.
        """
        if self._by is not None:
            self._restore()
            signal.raise_signal(self._by)
            raise KeyboardInterrupt

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked, self._by = True, self._by or number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)
