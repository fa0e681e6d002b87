"""All that a served class declares, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from gpuserve.specs.base import Spec
from gpuserve.specs.batching import Batching
from gpuserve.specs.budget import Budget, HourlyCost
from gpuserve.specs.gpu import parse_gpu
from gpuserve.specs.http import Http
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.scaling import Scaling
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.telemetry import Telemetry

__all__ = ["ServerDeclaration"]

_DAY_S = 24 * 3600


class ServerDeclaration(Spec):
    """What a `WarmModelServer` subclass declares as class attributes; see there."""

    image: ImageSpec | None = None
    """the image, e.g. ImageSpec.debian().pip('torch==2.13.0')"""
    gpu: str | tuple[str, ...] | None = None
    """a GPU as in 'L4' or 'H100:2', or several in the order of preference"""
    scaling: Scaling = Scaling()
    """how many containers, e.g. Scaling(max_containers=4)"""
    batching: Batching = Batching()
    """how requests are gathered, e.g. Batching(max_batch_size=64)"""
    http: Http | None = None
    """the HTTP face, e.g. Http(keys=SecretSpec(name='keys')); none for RPC alone"""
    secrets: tuple[Any, ...] = ()
    """SecretSpec or modal.Secret objects"""
    telemetry: Telemetry = Telemetry()
    """what it tells of itself, e.g. Telemetry(alerts=Alerts(webhook=SecretSpec(name='slack')))"""
    timeout_s: Annotated[int, Field(ge=1, le=_DAY_S)] = 300
    """seconds that one call may take, 1 to 86,400"""
    startup_timeout_s: Annotated[int, Field(ge=1, le=_DAY_S)] = 600
    """seconds that load and warm-up may take, 1 to 86,400"""
    memory_snapshot: bool = False
    """whether Modal snapshots the memory after load"""
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    """times that a failed call is tried again"""
    cpu: Annotated[float | None, Field(gt=0, le=64)] = None
    """physical cores to reserve"""
    memory_mib: Annotated[int | None, Field(ge=128, le=344_064)] = None
    """MiB of memory to reserve"""
    ephemeral_disk_mib: Annotated[int | None, Field(ge=524_288, le=3_145_728)] = None
    """MiB of scratch disk, from 524,288"""
    env: Mapping[str, str] = {}
    """environment variables of the container"""
    volumes: Mapping[str, Any] = {}
    """modal.Volume objects by the absolute path that they are mounted at"""
    cloud: str | None = None
    """the cloud to run in"""
    region: str | tuple[str, ...] | None = None
    """the region or regions to run in"""
    routing_region: str | None = None
    """the region that takes the requests"""
    proxy: Any = None
    """a modal.Proxy"""
    nonpreemptible: bool = False
    """whether the container may not be preempted; for CPU alone"""
    max_parameter_sets: Annotated[int, Field(ge=1, le=1000)] = 1
    """sets of modal.parameter values in use at once; each is a pool of its own"""
    budget: Budget | None = None
    """the most that all its containers may cost an hour, e.g. Budget(max_usd_per_hour=10)"""
    modal: Mapping[str, Any] = {}
    """arguments handed on to modal's app.cls as they are"""

    @field_validator("gpu", mode="before")
    @classmethod
    def _gpus(cls, value: Any) -> Any:
        names = (value,) if isinstance(value, str) else value
        if isinstance(names, Sequence):
            for name in names:
                if isinstance(name, str):
                    parse_gpu(name)
        return tuple(value) if isinstance(value, list) else value

    @property
    def all_secrets(self) -> tuple[Any, ...]:
        """Those that were declared, and those that the keys and the alerts need."""
        keys = self.http.keys if self.http is not None else None
        webhook = self.telemetry.alerts.webhook if self.telemetry.alerts is not None else None
        return (*self.secrets, *(one for one in (keys, webhook) if one is not None))

    @property
    def hourly_cost(self) -> HourlyCost:
        """The most that the class can cost an hour."""
        gpus = (self.gpu,) if isinstance(self.gpu, str) else self.gpu or ()
        return HourlyCost.of(
            gpus=gpus,
            cpu=self.cpu,
            memory_mib=self.memory_mib,
            max_containers=self.scaling.max_containers,
            parameter_sets=self.max_parameter_sets,
            region=self.region is not None,
            nonpreemptible=self.nonpreemptible,
        )

    @model_validator(mode="after")
    def _within_budget(self) -> Self:
        fault = self.budget.fault(self.hourly_cost) if self.budget is not None else None
        if fault is not None:
            raise ValueError(fault)
        return self

    @field_validator("secrets", mode="after")
    @classmethod
    def _secrets(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for one in value:
            # modal is not imported here; its own secrets are known by where their class lives
            if not isinstance(one, SecretSpec) and type(one).__module__.partition(".")[0] != "modal":
                raise ValueError("write SecretSpec(name=…) or a modal.Secret for each")
        return value

    @field_validator("volumes", mode="after")
    @classmethod
    def _volumes(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for path in value:
            if not path.startswith("/") or ".." in path.split("/") or path == "/":
                raise ValueError(f"{path!r} is not a folder to mount at; write an absolute path such as '/models'")
        return value
