"""When a job runs, and what is done where its times and its runs collide."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gpuserve.calendar import Cron, Period, cron_faults, latest_due, next_fire, period_faults, zone_faults
from gpuserve.exceptions import DeclarationError
from gpuserve.prices import Prices
from gpuserve.specs.base import Spec
from gpuserve.specs.budget import HourlyCost
from gpuserve.specs.function_options import MOUNTABLE, Gpus, Secrets
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.secret import SecretSpec

__all__ = ["CatchUp", "Clock", "JobAlerts", "JobDeclaration", "Overlap", "Schedule"]

Clock = Literal["native", "tick"]
Overlap = Literal["skip", "queue_one", "cancel_other", "allow"]
CatchUp = Literal["none", "one", "all"]
_DAY_S = 24 * 3600
_UNITS = ("years", "months", "weeks", "days", "hours", "minutes", "seconds")
_SHORTEST_TICK_S = 60


class Schedule(Spec):
    """The times at which a job is due: a cron string read in a time zone, or every so often.

    A period is counted from the beginning of 1970 in UTC, so that no deployment moves it: six hours are midnight,
    six, noon and six.

    Raises:
        DeclarationError: With every fault of the string, the zone or the period.

    Examples:
        >>> nightly = Schedule.cron("0 2 * * *", zone="Europe/Berlin")
        >>> print(nightly)
        cron 0 2 * * * in Europe/Berlin
        >>> print(Schedule.period(hours=6))
        every 6 hours
        >>> try:
        ...     Schedule.cron("61 99 * * *", zone="Mars/Phobos")
        ... except DeclarationError as error:
        ...     len(error.faults)
        3
    """

    text: str = ""
    """a cron string of five fields"""
    zone: str = "UTC"
    """the IANA name of a time zone"""
    every: Mapping[str, float] = {}
    """a period, by its units"""

    @classmethod
    def cron(cls, cron: str, zone: str = "UTC") -> Self:
        """The times that a cron string names on the clock of a zone.

        Where the clock jumps ahead over a time of day, the job is due once it has jumped; where it shows an hour
        twice, the job is due the first time alone. A string with ``*`` in its minute or hour follows the clock.

        Args:
            cron: Minute, hour, day of month, month, day of week.
            zone: An IANA name, e.g. ``"Europe/Berlin"``.
        """
        return cls(text=cron, zone=zone)

    @classmethod
    def period(cls, **units: float) -> Self:
        """Every so many years, months, weeks, days, hours, minutes and seconds, together 1 s to 100 years."""
        if not units:
            raise DeclarationError(cls.__name__, ("period got nothing; write one such as Schedule.period(hours=6)",))
        return cls(every=units)

    if not TYPE_CHECKING:  # checkers keep pydantic's own signature, field by field

        def __init__(self, **data: Any) -> None:
            faults = _schedule_faults(data)
            if faults:
                known = ", ".join(sorted(type(self).model_fields))
                unknown = [name for name in data if name not in type(self).model_fields]
                faults += [f"{name} is not a field; write one of {known}" for name in unknown]
                raise DeclarationError(type(self).__name__, tuple(faults))
            super().__init__(**data)

    @property
    def spec(self) -> Cron | Period:
        """What the calendar reckons with."""
        return Period.of(**dict(self.every)) if self.every else Cron.parse(self.text)

    def next_after(self, at: datetime) -> datetime:
        """The first time after *at* that the job is due, on the zone's clock."""
        return next_fire(self.spec, self.zone, at)

    def latest_until(self, at: datetime) -> datetime | None:
        """The last time up to *at* that the job was due."""
        return latest_due(self.spec, self.zone, at)

    def is_due_at(self, at: datetime) -> bool:
        """Whether *at* is one of its times."""
        return self.latest_until(at) == at

    def __str__(self) -> str:
        """In a few words."""
        if not self.every:
            return f"cron {self.text} in {self.zone}"
        return "every " + ", ".join(f"{value:g} {name}" for name, value in self.every.items() if value)


def _schedule_faults(data: Mapping[str, Any]) -> list[str]:
    faults: list[str] = []
    text, zone, every = data.get("text", ""), data.get("zone", "UTC"), data.get("every", {})
    if not isinstance(text, str):
        faults.append(f"cron got {text!r}, and text such as '0 2 * * *' is allowed")
    if not isinstance(every, Mapping):
        faults.append(f"period got {every!r}, and units such as {{'hours': 6}} are allowed")
    if faults:
        pass  # which of the two was meant cannot be told
    elif (every and text) or not (every or "text" in data):
        faults.append("write a cron string or a period: Schedule.cron('0 2 * * *') or Schedule.period(hours=6)")
    elif every:
        faults += _period_faults(every)
    else:
        faults += [f"cron got {text!r}: {fault}" for fault in cron_faults(text)]
    if not isinstance(zone, str):
        faults.append(f"zone got {zone!r}, and an IANA name such as 'Europe/Berlin' is allowed")
    else:
        faults += [f"zone got {zone!r}: {fault}" for fault in zone_faults(zone)]
    return faults


def _period_faults(every: Mapping[str, Any]) -> list[str]:
    unknown = [f"period got {name!r}, and {', '.join(_UNITS)} are allowed" for name in every if name not in _UNITS]
    wrong = [
        f"{name} got {value!r}, and a number is allowed"
        for name, value in every.items()
        if isinstance(value, bool) or not isinstance(value, (int, float))
    ]
    if unknown or wrong:
        return unknown + wrong
    whole = [
        f"{name} got {value!r}, and a whole number is allowed"
        for name, value in every.items()
        if name in {"years", "months"} and value != value // 1
    ]
    return whole or [f"period: {fault}" for fault in period_faults(**every)]


class JobAlerts(Spec):
    """Messages to a chat about a job, by a webhook that takes Slack's ``{"text": …}``.

    Examples:
        >>> JobAlerts(webhook=SecretSpec(name="slack")).on
        ('failed', 'missed', 'recovered')
    """

    webhook: SecretSpec
    """the secret that brings GPUSERVE_ALERT_WEBHOOK, an https address"""
    on: Annotated[tuple[Literal["failed", "missed", "recovered"], ...], Field(min_length=1)] = (
        "failed",
        "missed",
        "recovered",
    )
    """what is told: failed (the last attempt of a run), missed (a time that no run was started for), recovered"""
    per_hour: Annotated[int, Field(ge=1, le=60)] = 4
    """alerts of one kind in an hour, 1 to 60"""


class JobDeclaration(Spec):
    """What a `ScheduledJob` subclass declares as class attributes; see there."""

    schedule: Schedule
    """when it is due, e.g. Schedule.cron('0 2 * * *', zone='Europe/Berlin')"""
    clock: Clock = "native"
    """what fires it: 'native' (Modal's own schedule) or 'tick' (one function a minute for all jobs of the app)"""
    overlap: Overlap = "skip"
    """a time that comes while a run is at work: 'skip', 'queue_one', 'cancel_other' or 'allow'"""
    catch_up: CatchUp = "none"
    """times that were missed: 'none', 'one' (the latest) or 'all' within the window"""
    catch_up_window_s: Annotated[int, Field(ge=60, le=366 * _DAY_S)] = _DAY_S
    """how long ago a missed time may be to be caught up with, 60 s to a year"""
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    """times that a failed run is tried again, 0 to 10"""
    retry_delay_s: Annotated[float, Field(ge=0, le=60)] = 1.0
    """seconds before the first retry, doubled each time, up to 60"""
    timeout_s: Annotated[int, Field(ge=1, le=_DAY_S)] = 3600
    """seconds that one attempt may take, 1 to 86,400"""
    image: ImageSpec | None = None
    """the image, e.g. ImageSpec.debian().pip('torch==2.13.0')"""
    gpu: Gpus = None
    """a GPU as in 'L4' or 'H100:2', or several in the order of preference"""
    cpu: Annotated[float | None, Field(gt=0, le=64)] = None
    """physical cores to reserve"""
    memory_mib: Annotated[int | None, Field(ge=128, le=344_064)] = None
    """MiB of memory to reserve"""
    max_containers: Annotated[int, Field(ge=1, le=1000)] = 1
    """runs at the same time, where overlap is 'allow' or runs are started by hand"""
    env: Mapping[str, str] = {}
    """environment variables of the container"""
    secrets: Secrets = ()
    """SecretSpec or modal.Secret objects"""
    volumes: Annotated[Mapping[str, Any], MOUNTABLE] = {}
    """modal.Volume objects by the absolute path that they are mounted at"""
    alerts: JobAlerts | None = None
    """whom to tell, e.g. JobAlerts(webhook=SecretSpec(name='slack'))"""
    keep_days: Annotated[int, Field(ge=7, le=3660)] = 400
    """days that the history of a run is kept, 7 to 3,660"""
    modal: Mapping[str, Any] = {}
    """arguments handed on to modal's app.function as they are"""

    @model_validator(mode="after")
    def _within_a_tick(self) -> Self:
        spec = self.schedule.spec
        if self.clock == "tick" and isinstance(spec, Period) and not spec.months and spec.seconds < _SHORTEST_TICK_S:
            raise ValueError(f"clock got 'tick', which looks once a minute, and the schedule is {self.schedule}")
        return self

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that it may run on, in the order of preference."""
        return (self.gpu,) if isinstance(self.gpu, str) else self.gpu or ()

    def hourly_cost_at(self, prices: Prices | None) -> HourlyCost:
        """The most that its runs can cost an hour at these prices, or by the list."""
        return HourlyCost.of(
            gpus=self.gpus,
            cpu=self.cpu,
            memory_mib=self.memory_mib,
            max_containers=self.max_containers,
            prices=prices,
        )
