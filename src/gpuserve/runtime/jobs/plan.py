"""A job as its clock and its history know it, and one run of it as the user's code does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from gpuserve.exceptions import JobError, LeaseLostError
from gpuserve.runtime.jobs.decisions import Trigger
from gpuserve.specs.schedule import CatchUp, Clock, JobAlerts, Overlap, Schedule

__all__ = ["JobOutcome", "JobPlan", "JobRun", "parse_time", "told"]


@dataclass(frozen=True)
class JobPlan:
    """What a job's declaration says of its times, small enough to travel with the function that fires it."""

    app: str
    name: str
    schedule: Schedule
    clock: Clock = "native"
    overlap: Overlap = "skip"
    catch_up: CatchUp = "none"
    catch_up_window_s: int = 86_400
    retries: int = 0
    alerts: JobAlerts | None = None
    keep_days: int = 400

    @property
    def window(self) -> timedelta:
        """How long ago a missed time may be to be caught up with."""
        return timedelta(seconds=self.catch_up_window_s)


@dataclass(frozen=True)
class JobRun:
    """One run of a job, as it is handed to ``run``.

    Attributes:
        app: The app's name.
        job: The job's name.
        nominal_time: The time that the run is for, on the schedule's clock; not the time at which it began.
        trigger: ``"schedule"``, ``"manual"``, ``"backfill"`` or ``"catch_up"``.
        attempt: 1 for the first try for this time; a retry, or a run that is forced by hand, counts on.
        fence: A number that grows with each run of the job. Storage that remembers the largest it has seen, and
            refuses smaller ones, is safe from a run that was taken for dead and was not.
    """

    app: str
    job: str
    nominal_time: datetime
    trigger: Trigger
    attempt: int
    fence: int
    _lost: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    @property
    def idempotency_key(self) -> str:
        """The same for every run for this time, and for no other."""
        return f"{self.app}/{self.job}/{told(self.nominal_time)}"

    @property
    def is_current(self) -> bool:
        """Whether no other run for this time has taken over."""
        return not self._lost.is_set()

    def check(self) -> None:
        """Call it before what must not be done twice.

        Raises:
            LeaseLostError: If another run for this time has taken over.
        """
        if not self.is_current:
            raise LeaseLostError(f"{self.idempotency_key} was taken over by another run; this one must not go on")


@dataclass(frozen=True)
class JobOutcome:
    """What became of a call of a job.

    Attributes:
        state: ``"succeeded"``, ``"already_done"`` (a run for this time succeeded before) or ``"already_running"``.
        nominal_time: The time that it was for.
        attempt: Of the run that was made; 0 if none was.
        fence: Of the run that was made; 0 if none was.
        value: What ``run`` returned.
    """

    state: str
    nominal_time: datetime
    attempt: int = 0
    fence: int = 0
    value: Any = None


def told(time: datetime) -> str:
    """A time as it is written everywhere: in UTC, to the second unless it has a fraction of one."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_time(text: str, schedule: Schedule, now: Callable[[], datetime]) -> datetime:
    """The nominal time that *text* means: ISO 8601, on the schedule's clock unless it names a zone; empty, the latest.

    Raises:
        JobError: If it is no time, lies ahead, or is none of the schedule's.
    """
    if not text:
        latest = schedule.latest_until(now())
        if latest is None:
            raise JobError(f"{schedule} was never due yet; its first time is {told(schedule.next_after(now()))}")
        return latest
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise JobError(f"at got {text!r}, and a time such as '2026-11-25T02:00' is allowed") from None
    if given.tzinfo is None:
        given = given.replace(tzinfo=ZoneInfo(schedule.zone))
    given = given.astimezone(UTC).astimezone(ZoneInfo(schedule.zone))
    if given > now():
        raise JobError(f"at got {text!r}, which lies ahead; the job runs for it when it comes")
    if not schedule.is_due_at(given):
        before, after = schedule.latest_until(given), schedule.next_after(given)
        near = " and ".join(one.isoformat() for one in (before, after) if one is not None)
        raise JobError(f"at got {text!r}, which is no time of {schedule}; the nearest are {near}")
    return given
