"""A fine-tuning, declared to modal: one method, one container at a time, and attempts that follow one another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import modal

from gpuserve.builders.finetune import FineTuneJob, attempt_at, training_declaration_of
from gpuserve.builders.lowering.costs import note_cost
from gpuserve.builders.lowering.image import modal_image
from gpuserve.builders.lowering.secret import modal_secret
from gpuserve.exceptions import DeclarationError, RegistrationError
from gpuserve.runtime.secrets import require_keys
from gpuserve.runtime.training.report import TrainingReport
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.source import VolumeSource
from gpuserve.specs.training import TrainingDeclaration

__all__ = ["RegisteredTuning", "TrainMethod", "lower_tuning"]

# Source: Modal's guide to retries: at most 60 s between two.
_RETRY_AFTER_S, _RETRY_AT_MOST_S = 5.0, 60.0


def lower_tuning(app: modal.App, cls: type[FineTuneJob], overrides: Mapping[str, Any]) -> Any:
    """Make a Modal class of a job, on *app*.

    Raises:
        DeclarationError: With every fault of the declaration.
    """
    declaration = training_declaration_of(cls, overrides)
    faults = []
    if declaration.image is None:
        faults.append(
            "image is missing; write image = gpuserve.ImageSpec.debian('3.11').pip('torch==…', 'transformers==…', "
            "'peft==…', 'trl==…')"
        )
    known = inspect.signature(modal.App.cls).parameters
    faults += [
        f"modal got {one!r}, which app.cls does not take; leave it out" for one in declaration.modal if one not in known
    ]
    if faults or declaration.image is None:
        raise DeclarationError(cls.__qualname__, tuple(faults))
    for field, value in overrides.items():
        setattr(cls, field, value)
    registered: Any = None

    def train(self: FineTuneJob, run: str) -> TrainingReport:
        require_keys(one for one in declaration.all_secrets if isinstance(one, SecretSpec))
        report = attempt_at(self, run, timeout_s=declaration.timeout_s).work()
        if report.state != "continued":
            return report
        # it waits until this container is free, and is told the same if another has gone on meanwhile
        return report.followed_by(modal.Cls.__call__(registered).train.spawn(run).object_id)

    cls.train = modal.method()(train)  # type: ignore[assignment,method-assign]
    try:
        registered = app.cls(**_arguments(declaration, declaration.image))(cls)
    except (modal.exception.Error, TypeError, ValueError) as error:
        raise DeclarationError(cls.__qualname__, (f"Modal does not take it: {error}",)) from error
    registered.__class__ = RegisteredTuning
    registered._gpuserve_name = cls.__qualname__
    registered._gpuserve_job = cls
    registered._gpuserve_declaration = declaration
    note_cost(app, cls.__name__, declaration.hourly_cost)
    return registered


_OnAttempt = Callable[[TrainingReport], None]


class RegisteredTuning(modal.Cls):
    """A ``modal.Cls`` in all things; calling it gives a handle whose ``train.remote`` waits for the whole run."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The handle."""
        return _Handle(super().__call__(*args, **kwargs), self._gpuserve_job)

    def __getattr__(self, name: str) -> Any:
        """What the class itself has, such as `FineTuneJob.adapter` and `FineTuneJob.local`."""
        if name in {"adapter", "local"}:
            return getattr(self._gpuserve_job, name)
        return super().__getattr__(name)  # type: ignore[no-untyped-call]

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Refuse to be a base class.

        Raises:
            RegistrationError: Always.
        """
        raise RegistrationError(
            f"{self._gpuserve_name} is registered and cannot be subclassed; subclass an unregistered base"
        )


class _Handle:
    def __init__(self, instance: Any, job: type[FineTuneJob]) -> None:
        self._instance, self._job = instance, job

    @property
    def train(self) -> TrainMethod:
        return TrainMethod(self._instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instance, name)


class TrainMethod:
    """Runs of a registered job."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    @property
    def remote(self) -> RemoteTraining:
        """``remote(run)`` and ``await remote.aio(run)``."""
        return RemoteTraining(self._instance)

    @property
    def spawn(self) -> Any:
        """Modal's own ``.spawn``: begins, and waits for nothing; the call's answer is that of the first attempt."""
        return self._instance.train.spawn


class RemoteTraining:
    """Begin a run, or go on with it, and wait through all its attempts.

    Who waits may leave: each attempt starts the next one itself.
    """

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def __call__(self, run: str, *, on_attempt: _OnAttempt | None = None) -> TrainingReport:
        """The report of the last attempt.

        Args:
            run: The run's name.
            on_attempt: Told of each attempt that the next one goes on from.

        Raises:
            DivergedError: If the loss or the gradient is no number.
            TrainingError: If it cannot begin or go on.
        """
        report: TrainingReport = self._instance.train.remote(run)
        while (following := _next_of(report, on_attempt)) is not None:
            report = following.get()
        return report.raised()

    async def aio(self, run: str, *, on_attempt: _OnAttempt | None = None) -> TrainingReport:
        """The same, awaited."""
        report: TrainingReport = await self._instance.train.remote.aio(run)
        while (following := _next_of(report, on_attempt)) is not None:
            report = await following.get.aio()
        return report.raised()


def _next_of(report: TrainingReport, on_attempt: _OnAttempt | None) -> modal.FunctionCall[Any] | None:
    """The call that goes on from there, if any."""
    if report.state != "continued" or not report.next_call:
        return None
    if on_attempt is not None:
        on_attempt(report)
    return modal.FunctionCall.from_id(report.next_call)


def _arguments(declaration: TrainingDeclaration, image: ImageSpec) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "image": modal_image(image),
        "gpu": list(declaration.gpu) if isinstance(declaration.gpu, tuple) else declaration.gpu,
        "secrets": [modal_secret(one) if isinstance(one, SecretSpec) else one for one in declaration.all_secrets],
        "env": {**declaration.base.env, **declaration.env} or None,
        "volumes": {**_volumes(declaration), **declaration.volumes},
        # runs of one job follow one another: a second attempt at a run finds what the first one left
        "max_containers": 1,
        "timeout": declaration.timeout_s,
        "retries": modal.Retries(
            max_retries=declaration.retries, initial_delay=_RETRY_AFTER_S, max_delay=_RETRY_AT_MOST_S
        )
        if declaration.retries
        else None,
        "cpu": declaration.cpu,
        "memory": declaration.memory_mib,
        "ephemeral_disk": declaration.ephemeral_disk_mib,
        "cloud": declaration.cloud,
        "region": declaration.region,
    }
    return {**arguments, **declaration.modal}


def _volumes(declaration: TrainingDeclaration) -> dict[str, modal.Volume]:
    def named(name: str) -> modal.Volume:
        return modal.Volume.from_name(name, create_if_missing=True)

    found = {
        declaration.base.mounted_at: named(declaration.base.volume),
        declaration.runs_path: named(declaration.runs_volume),
        declaration.adapters_path: named(declaration.adapters_volume),
    }
    read = {one.mount_path: one.volume for one in declaration.dataset_volumes}
    if isinstance(declaration.base.source, VolumeSource):
        read[declaration.base.source.mount_path] = declaration.base.source.volume
    for path, name in read.items():
        found[path] = modal.Volume.from_name(name).with_mount_options(read_only=True)
    return found
