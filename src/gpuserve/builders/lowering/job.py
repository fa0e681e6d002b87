"""A job, declared to modal: the function that runs it, and those that keep its time."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import modal

from gpuserve.builders.job import ScheduledJob, job_declaration_of
from gpuserve.builders.lowering.costs import note_cost
from gpuserve.builders.lowering.image import modal_image
from gpuserve.builders.lowering.secret import modal_secret
from gpuserve.calendar import Period
from gpuserve.exceptions import DeclarationError, RegistrationError
from gpuserve.runtime.jobs import functions
from gpuserve.runtime.jobs.decisions import Trigger
from gpuserve.runtime.jobs.plan import JobOutcome, JobPlan
from gpuserve.runtime.secrets import require_keys
from gpuserve.specs.budget import HourlyCost
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.schedule import JobDeclaration, Schedule
from gpuserve.specs.secret import SecretSpec

__all__ = ["OPERATIONS", "register_job"]

OPERATIONS, TICK = "gpuserve_jobs", "gpuserve_jobs_tick"
_CLOCK_TIMEOUT_S = 600
# A look that comes late: Modal's schedule fired, and the container was preempted.
_CLOCK_RETRIES = 3
_HOUR_S, _DAY_S, _MINUTE_S = 3600, 86_400, 60


@dataclass
class _Jobs:
    """What an app has of jobs: their plans, and the functions that are there for all of them."""

    plans: list[JobPlan] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)


_JOBS: weakref.WeakKeyDictionary[modal.App, _Jobs] = weakref.WeakKeyDictionary()


class RegisteredJob(modal.Function):  # type: ignore[type-arg]
    """A ``modal.Function`` in all things, which refuses to be a base class."""

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Refuse.

        Raises:
            RegistrationError: Always.
        """
        raise RegistrationError("a registered job cannot be subclassed; subclass an unregistered base")


def register_job(app: modal.App, cls: type[ScheduledJob], overrides: dict[str, Any]) -> Any:
    """Make a Modal function of a job, on *app*, and the functions that keep its time.

    Returns:
        The ``modal.Function``: ``Nightly.remote("2026-11-25T02:00")`` runs it by hand for that time.

    Raises:
        RegistrationError: If the app has no name, or has a job of that name.
        DeclarationError: With every fault of the declaration.
    """
    if app.name is None:
        raise RegistrationError(
            f"{cls.__name__} needs an app with a name: modal.App('jobs'); its history is kept by it"
        )
    declaration = job_declaration_of(cls, overrides)
    faults = _faults(cls, declaration)
    if faults or declaration.image is None:
        raise DeclarationError(cls.__qualname__, tuple(faults))
    plan = _plan(app.name, cls.__name__, declaration)
    jobs = _JOBS.setdefault(app, _Jobs())
    plans = jobs.plans
    webhook = plans[0].alerts.webhook if plans and plans[0].alerts is not None else None
    if plans and plan.alerts is not None and plan.alerts.webhook != webhook:
        raise RegistrationError(
            f"{plan.name} has alerts to {plan.alerts.webhook.name!r}, and {plans[0].name}, the app's first job, to "
            f"{repr(webhook.name) if webhook is not None else 'nobody'}: the jobs of an app share a webhook; declare "
            f"it there too, or register {plan.name} on an app of its own"
        )
    if any(one.name == plan.name for one in plans):
        raise RegistrationError(f"the app has a job {plan.name} already; rename one of them")
    plans.append(plan)
    arguments = _arguments(declaration, declaration.image)
    registered = app.function(name=plan.name, **arguments)(_run_function(cls, plan, declaration))
    _keep_time(app, plan, jobs, declaration)
    note_cost(app, plan.name, declaration.hourly_cost_at(None))
    registered.__class__ = RegisteredJob
    vars(registered)["_gpuserve_declaration"] = declaration
    return registered


def _faults(cls: type[ScheduledJob], declaration: JobDeclaration) -> list[str]:
    faults = []
    if declaration.image is None:
        faults.append("image is missing; write image = gpuserve.ImageSpec.debian('3.11').pip('name==version')")
    if cls.run is ScheduledJob.run:
        faults.append("run is missing; write def run(self, run: gpuserve.JobRun) -> None")
    if functions.MOUNT in declaration.volumes:
        faults.append(f"volumes mounts at {functions.MOUNT}, where the history of jobs is; move it")
    known = inspect.signature(modal.App.function).parameters
    faults += [
        f"modal got {name!r}, which app.function does not take; leave it out"
        for name in declaration.modal
        if name not in known
    ]
    return faults


def _plan(app: str, name: str, declaration: JobDeclaration) -> JobPlan:
    return JobPlan(
        app=app,
        name=name,
        schedule=declaration.schedule,
        clock=declaration.clock,
        overlap=declaration.overlap,
        catch_up=declaration.catch_up,
        catch_up_window_s=declaration.catch_up_window_s,
        retries=declaration.retries,
        alerts=declaration.alerts,
        keep_days=declaration.keep_days,
    )


def _run_function(cls: type[ScheduledJob], plan: JobPlan, declaration: JobDeclaration) -> Callable[..., JobOutcome]:
    secrets = [one for one in declaration.secrets if isinstance(one, SecretSpec)]

    def run(at: str = "", trigger: str = "manual", force: bool = False) -> JobOutcome:
        require_keys(secrets)
        why: Trigger = trigger  # type: ignore[assignment]  # checked by whoever reads the history
        return functions.run_in_container(plan, lambda one: cls().run(one), at=at, trigger=why, force=force)

    # the container finds the function where the class stands
    run.__name__ = run.__qualname__ = cls.__qualname__
    run.__module__, run.__doc__ = cls.__module__, cls.__doc__
    return run


def _arguments(declaration: JobDeclaration, image: ImageSpec) -> dict[str, Any]:
    retries = declaration.retries and modal.Retries(
        max_retries=declaration.retries,
        initial_delay=declaration.retry_delay_s,
        backoff_coefficient=2.0,
        max_delay=60.0,
    )
    arguments = {
        "image": modal_image(image),
        "gpu": list(declaration.gpu) if isinstance(declaration.gpu, tuple) else declaration.gpu,
        "secrets": _secrets(declaration),
        "env": dict(declaration.env) or None,
        "volumes": {**declaration.volumes, **_history()},
        "max_containers": declaration.max_containers,
        "timeout": declaration.timeout_s,
        "retries": retries or None,
        "cpu": declaration.cpu,
        "memory": declaration.memory_mib,
    }
    return {**arguments, **declaration.modal}


def _secrets(declaration: JobDeclaration, *, alerts_alone: bool = False) -> list[modal.Secret]:
    webhook = [declaration.alerts.webhook] if declaration.alerts is not None else []
    wanted = webhook if alerts_alone else [*declaration.secrets, *webhook]
    return [modal_secret(one) if isinstance(one, SecretSpec) else one for one in wanted]


def _history() -> dict[Any, Any]:
    return {functions.MOUNT: modal.Volume.from_name(functions.VOLUME, create_if_missing=True)}


def _keep_time(app: modal.App, plan: JobPlan, jobs: _Jobs, declaration: JobDeclaration) -> None:
    """The functions that fire the job and answer for it; they travel as they are, and import no file of the user's.

    That of the app knows the jobs that are registered after it too: it is packed when the app is deployed.
    """
    secrets = _secrets(declaration, alerts_alone=True)
    if plan.clock == "native":

        def fire() -> Any:
            return functions.look_at_all([plan], "fired")

        _declare(app, fire, f"{plan.name}_clock", secrets, schedule=_native(plan.schedule), retries=_CLOCK_RETRIES)
    plans = jobs.plans
    if OPERATIONS not in jobs.shared:

        def operate(operation: str = "list", job: str = "", arguments: dict[str, Any] | None = None) -> Any:
            return functions.operate(plans, operation, job, arguments or {})

        _declare(app, operate, OPERATIONS, secrets)
    if plan.clock == "tick" and TICK not in jobs.shared:

        def tick() -> Any:
            return functions.look_at_all([one for one in plans if one.clock == "tick"], "tick")

        _declare(app, tick, TICK, secrets, schedule=modal.Cron("* * * * *"))
    jobs.shared |= {OPERATIONS, TICK} if plan.clock == "tick" else {OPERATIONS}


def _declare(app: modal.App, code: Callable[..., Any], name: str, secrets: list[modal.Secret], **more: Any) -> None:
    note_cost(app, name, HourlyCost.of())
    app.function(
        name=name,
        serialized=True,
        image=modal_image(ImageSpec.debian(f"{sys.version_info.major}.{sys.version_info.minor}")),
        volumes=_history(),
        secrets=secrets,
        max_containers=1,
        timeout=_CLOCK_TIMEOUT_S,
        include_source=False,
        **more,
    )(code)


def _native(schedule: Schedule) -> modal.schedule.Schedule:
    """Modal's schedule for it: a period that divides a day into whole minutes is a cron, which no deployment resets."""
    spec = schedule.spec
    if not isinstance(spec, Period):
        return modal.Cron(schedule.text, timezone=schedule.zone)
    cron = None if spec.months else _cron_of(spec.seconds)
    if cron is not None:
        return modal.Cron(cron)
    every: dict[str, Any] = {name: value for name, value in schedule.every.items() if name != "seconds"}
    whole = {name: int(value) for name, value in every.items() if value == int(value)}
    rest = sum(
        (value - whole.get(name, 0)) * {"weeks": 604_800, "days": _DAY_S, "hours": _HOUR_S, "minutes": _MINUTE_S}[name]
        for name, value in every.items()
        if name not in {"years", "months"}
    )
    return modal.Period(**whole, seconds=schedule.every.get("seconds", 0) + rest)


def _cron_of(seconds: float) -> str | None:
    """The cron string in UTC of so many seconds, counted from the beginning of 1970, a Thursday."""
    if seconds == 7 * _DAY_S:
        return "0 0 * * 4"
    if seconds == _DAY_S:
        return "0 0 * * *"
    for unit, text in ((_HOUR_S, "0 {} * * *"), (_MINUTE_S, "{} * * * *")):
        larger = {_HOUR_S: _DAY_S, _MINUTE_S: _HOUR_S}[unit]
        if seconds < larger and larger % seconds == 0 and seconds % unit == 0:
            return text.format(f"*/{int(seconds // unit)}")
    return None
