"""`ScheduledJob`: code that runs at its times, once for each, and what became of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gpuserve.exceptions import DeclarationError
from gpuserve.runtime.jobs.plan import JobRun
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.schedule import CatchUp, Clock, JobAlerts, JobDeclaration, Overlap, Schedule

__all__ = ["ScheduledJob", "job_declaration_of"]


class ScheduledJob:
    """Code that runs at its times: each nominal time has one run that succeeds, with an idempotency key of its own.

    Subclass it, say when it is due and what it needs as class attributes, write what it does as ``run``; then
    `gpuserve.register` makes a Modal function of it, and beside it the functions that keep its time.

    Attributes:
        schedule: When it is due; `Schedule.cron` or `Schedule.period`.
        clock: ``"native"``: Modal's own schedule fires it. ``"tick"``: one CPU function looks once a minute for all
            jobs of the app; then missed times are told, and the clock changes by Debian's rule.
        overlap: What becomes of a time that comes while a run is at work: ``"skip"``, ``"queue_one"``,
            ``"cancel_other"`` or ``"allow"``.
        catch_up: What becomes of times that were missed: ``"none"``, ``"one"`` (the latest) or ``"all"``.
        catch_up_window_s: How long ago a missed time may be to be caught up with.
        retries: How often a failed run is tried again.
        retry_delay_s: Seconds before the first retry, doubled each time.
        timeout_s: Seconds that one attempt may take.
        image: What the container is made from.
        gpu: As in ``"L4"`` or ``"H100:2"``; a sequence is tried in its order.
        max_containers: Runs at the same time.
        alerts: Whom to tell of failures, missed times and recovery.
        keep_days: How long its history is kept.
        modal: Handed on to ``modal.App.function`` as it is.

    Raises:
        DeclarationError: When the subclass is defined, with every fault of its declaration.

    Examples:
        >>> import gpuserve
        >>> class Nightly(gpuserve.ScheduledJob):
        ...     schedule = gpuserve.Schedule.cron("0 2 * * *", zone="Europe/Berlin")
        ...     image = gpuserve.ImageSpec.debian("3.11")
        ...
        ...     def run(self, run: gpuserve.JobRun) -> str:
        ...         return f"report of {run.nominal_time:%d %B}"
        >>> print(Nightly.schedule)
        cron 0 2 * * * in Europe/Berlin
    """

    schedule: ClassVar[Schedule]
    clock: ClassVar[Clock] = "native"
    overlap: ClassVar[Overlap] = "skip"
    catch_up: ClassVar[CatchUp] = "none"
    catch_up_window_s: ClassVar[int] = 86_400
    retries: ClassVar[int] = 0
    retry_delay_s: ClassVar[float] = 1.0
    timeout_s: ClassVar[int] = 3600
    image: ClassVar[ImageSpec | None] = None
    gpu: ClassVar[str | Sequence[str] | None] = None
    cpu: ClassVar[float | None] = None
    memory_mib: ClassVar[int | None] = None
    max_containers: ClassVar[int] = 1
    env: ClassVar[Mapping[str, str]] = {}
    secrets: ClassVar[tuple[Any, ...]] = ()
    volumes: ClassVar[Mapping[str, Any]] = {}
    alerts: ClassVar[JobAlerts | None] = None
    keep_days: ClassVar[int] = 400
    modal: ClassVar[Mapping[str, Any]] = {}

    if TYPE_CHECKING:  # of the Modal function that `gpuserve.register` makes of the class
        remote: ClassVar[Any]
        spawn: ClassVar[Any]
        local: ClassVar[Any]

    def run(self, run: JobRun) -> Any:
        """Do the job for ``run.nominal_time``; overridden.

        Raises:
            NotImplementedError: Unless overridden.
        """
        raise NotImplementedError(f"write def run(self, run) in {type(self).__name__}, for {run.nominal_time}")

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Check the declaration of every subclass that has a schedule."""
        super().__init_subclass__(**arguments)
        if hasattr(cls, "schedule"):
            job_declaration_of(cls, {})


def job_declaration_of(cls: type[ScheduledJob], overrides: Mapping[str, Any]) -> JobDeclaration:
    """All that a job declares, checked.

    Raises:
        DeclarationError: With every fault.
    """
    given = {name: getattr(cls, name) for name in JobDeclaration.model_fields if hasattr(cls, name)}
    faults: list[str] = []
    if "schedule" not in {**given, **overrides}:
        faults.append("schedule is missing; write schedule = gpuserve.Schedule.cron('0 2 * * *', zone='Europe/Berlin')")
    if inspect.iscoroutinefunction(cls.run):
        faults.append("run is async, and a job's run is not; write asyncio.run(...) inside it")
    elif len(inspect.signature(cls.run).parameters) != 2:  # noqa: PLR2004 (self, run)
        faults.append("run takes other arguments than (self, run); write def run(self, run: gpuserve.JobRun)")
    try:
        declaration = JobDeclaration(**{**given, **overrides})
    except DeclarationError as error:
        found = [one for one in error.faults if not (one.startswith("schedule got nothing") and faults)]
        raise DeclarationError(cls.__qualname__, (*faults, *found)) from None
    if faults:
        raise DeclarationError(cls.__qualname__, tuple(faults))
    return declaration
