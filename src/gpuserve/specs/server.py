"""All that a served class declares, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from gpuserve.prices import Prices
from gpuserve.specs.base import Spec
from gpuserve.specs.batching import Batching
from gpuserve.specs.budget import Budget, HourlyCost
from gpuserve.specs.function_options import MOUNTABLE, Gpus, Secrets
from gpuserve.specs.http import Http
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.scaling import Scaling
from gpuserve.specs.telemetry import Telemetry
from gpuserve.specs.weights import WeightsDeclaration

__all__ = ["ONLY", "ServerDeclaration"]

ONLY = "weights"
"""The name of a server's weights, where it has one cache and gave it none."""
_DAY_S = 24 * 3600
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]


class ServerDeclaration(Spec):
    """What a `WarmModelServer` subclass declares as class attributes; see there."""

    image: ImageSpec | None = None
    """the image, e.g. ImageSpec.debian().pip('torch==2.13.0')"""
    gpu: Gpus = None
    """a GPU as in 'L4' or 'H100:2', or several in the order of preference"""
    weights: Mapping[_Name, WeightsDeclaration] = {}
    """a VolumeWeightsCache, or several by name, as in {'base': …, 'reranker': …}"""
    adapters: Mapping[_Name, WeightsDeclaration] = {}
    """adapters that requests may name, each a VolumeWeightsCache of an AdapterSource"""
    max_loaded_adapters: Annotated[int, Field(ge=1, le=1000)] = 8
    """adapters that stay loaded; past it the least recently used one makes room"""
    mixed_adapters: bool = False
    """whether a batch may hold items of several adapters, which the model then tells apart"""
    scaling: Scaling = Scaling()
    """how many containers, e.g. Scaling(max_containers=4)"""
    batching: Batching = Batching()
    """how requests are gathered, e.g. Batching(max_batch_size=64)"""
    http: Http | None = None
    """the HTTP face, e.g. Http(keys=SecretSpec(name='keys')); none for RPC alone"""
    secrets: Secrets = ()
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
    volumes: Annotated[Mapping[str, Any], MOUNTABLE] = {}
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

    @field_validator("weights", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if value is None:
            return {}
        named = value if isinstance(value, Mapping) else {ONLY: value}
        return {name: one() if isinstance(one, type) else one for name, one in named.items()}

    @model_validator(mode="after")
    def _one_mount_a_path(self) -> Self:
        """Refuse a volume of the user's own where the weights are mounted, and two volumes at one place."""
        places: dict[str, str] = {}
        for name, cache in (*self.weights.items(), *self.adapters.items()):
            if cache.mounted_at in self.volumes:
                raise ValueError(f"volumes and weights both mount at {cache.mounted_at!r}; move one: mount_path='/…'")
            if places.setdefault(cache.mounted_at, cache.volume) != cache.volume:
                raise ValueError(f"weights {name!r} mounts a second volume at {cache.mounted_at!r}; move one")
        if self.mixed_adapters and not self.adapters:
            raise ValueError("mixed_adapters is set and there are no adapters; write adapters = {'name': …}")
        return self

    @property
    def caches(self) -> tuple[WeightsDeclaration, ...]:
        """All that the server reads weights from."""
        return (*self.weights.values(), *self.adapters.values())

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that it may run on, in the order of preference."""
        return (self.gpu,) if isinstance(self.gpu, str) else self.gpu or ()

    @property
    def all_secrets(self) -> tuple[Any, ...]:
        """Those that were declared, and those that the keys and the alerts need."""
        keys = self.http.keys if self.http is not None else None
        webhook = self.telemetry.alerts.webhook if self.telemetry.alerts is not None else None
        return (*self.secrets, *(one for one in (keys, webhook) if one is not None))

    @property
    def hourly_cost(self) -> HourlyCost:
        """The most that the class can cost an hour, at list prices: what its budget is compared with."""
        return self.hourly_cost_at(None)

    def hourly_cost_at(self, prices: Prices | None) -> HourlyCost:
        """The most that the class can cost an hour, at these prices."""
        return HourlyCost.of(
            gpus=self.gpus,
            cpu=self.cpu,
            memory_mib=self.memory_mib,
            max_containers=self.scaling.max_containers,
            parameter_sets=self.max_parameter_sets,
            region=self.region is not None,
            nonpreemptible=self.nonpreemptible,
            prices=prices,
        )

    def pool_cost_at(self, options: Mapping[str, Any], prices: Prices | None) -> HourlyCost:
        """The most that a pool with these options (Modal's names) can cost an hour, at these prices."""
        gpu = options.get("gpu")
        memory, cpu = options.get("memory", self.memory_mib), options.get("cpu", self.cpu)
        return HourlyCost.of(
            gpus=(gpu,) if gpu else self.gpus,
            cpu=max(cpu) if isinstance(cpu, tuple) else cpu,
            memory_mib=max(memory) if isinstance(memory, tuple) else memory,
            max_containers=options.get("max_containers") or self.scaling.max_containers,
            region=(options.get("region") or self.region) is not None,
            nonpreemptible=self.nonpreemptible,
            prices=prices,
        )

    def fault_beside(self, options: Mapping[str, Any]) -> str | None:
        """Why a pool with these options (Modal's names) costs too much beside the class's own; ``None`` if not."""
        if self.budget is None:
            return None
        own, beside = self.hourly_cost, self.pool_cost_at(options, None)
        both = HourlyCost(own.usd + beside.usd, own.containers + beside.containers, "")
        return self.budget.fault(both)

    @model_validator(mode="after")
    def _within_budget(self) -> Self:
        fault = self.budget.fault(self.hourly_cost) if self.budget is not None else None
        if fault is not None:
            raise ValueError(fault)
        return self
