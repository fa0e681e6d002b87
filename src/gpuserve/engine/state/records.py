"""What the registry keeps: apps and their deployments, functions, classes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.variants import apply_options

__all__ = ["App", "Deployment", "Function", "ModalClass", "Stated"]

LIVE = frozenset(
    {
        api_pb2.APP_STATE_EPHEMERAL,
        api_pb2.APP_STATE_DETACHED,
        api_pb2.APP_STATE_DETACHED_DISCONNECTED,
        api_pb2.APP_STATE_DEPLOYED,
        api_pb2.APP_STATE_INITIALIZING,
    }
)


@dataclass(slots=True)
class Deployment:
    """One AppPublish of a deployed app; ``commit`` is its CommitInfo, in hexadecimal."""

    version: int
    deployed_at: float
    client_version: str = ""
    tag: str = ""
    commit: str = ""
    rollback_version: int = 0
    staged: bool = False
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class App:
    """One app, ephemeral or deployed.

    Attributes:
        heartbeat_at: When its client was last heard of, in the seconds of a monotonic clock.
        version: The number of the deployment in force; 0 before the first.
    """

    id: str
    environment: str
    description: str
    state: int
    created_at: float
    name: str = ""
    deployed_at: float = 0.0
    stopped_at: float = 0.0
    heartbeat_at: float = 0.0
    tags: dict[str, str] = field(default_factory=dict)
    function_ids: dict[str, str] = field(default_factory=dict)
    class_ids: dict[str, str] = field(default_factory=dict)
    history: list[Deployment] = field(default_factory=list)
    version: int = 0

    @property
    def is_live(self) -> bool:
        """Whether the app may run containers."""
        return self.state in LIVE

    @property
    def is_deployed(self) -> bool:
        """Whether the app outlives its client."""
        return self.state == api_pb2.APP_STATE_DEPLOYED

    @property
    def newest(self) -> int:
        """The number of the newest deployment, staged ones included; 0 before the first."""
        return self.history[-1].version if self.history else 0

    def past(self, version: int) -> Deployment | None:
        """The deployment of that number."""
        return next((one for one in self.history if one.version == version), None)

    def to_json(self) -> str:
        """The app as it is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> App:
        """Read back what `to_json` wrote."""
        body: dict[str, Any] = json.loads(text)
        history = [Deployment(**one) for one in body.pop("history")]
        version = body.pop("version", history[-1].version if history else 0)
        return cls(**body, history=history, version=version)


@dataclass(frozen=True, slots=True)
class Stated:
    """What one version says of a function."""

    definition: api_pb2.Function
    data: api_pb2.FunctionData
    definition_id: str


@dataclass(slots=True)
class Function:
    """One function, a variant of one, or one as an older version of its app had it.

    Attributes:
        staged: What the next publish puts in force.
        base_id: Of a variant: the function whose parameters or options it changes.
        pinned: Of an older version's function: the number of that version; ``origin_id`` is today's function.
        retired: The version in force has it no more; what waits for it is still run.
    """

    id: str
    app_id: str
    name: str
    definition: api_pb2.Function = field(default_factory=api_pb2.Function)
    data: api_pb2.FunctionData = field(default_factory=api_pb2.FunctionData)
    staged: Stated | None = None
    overrides: api_pb2.AutoscalerSettings = field(default_factory=api_pb2.AutoscalerSettings)
    base_id: str = ""
    serialized_params: bytes = b""
    options: bytes = b""
    pinned: int = 0
    origin_id: str = ""
    retired: bool = False
    definition_id: str = ""
    web_urls: dict[str, str] = field(default_factory=dict)

    @property
    def stated(self) -> Stated:
        """What is in force for it now."""
        return Stated(self.definition, self.data, self.definition_id)

    @property
    def place(self) -> tuple[str, bytes, bytes]:
        """What makes a variant the same variant."""
        return self.base_id, self.serialized_params, self.options

    def drop_staged(self) -> None:
        """What was staged is in force, on disk as well."""
        self.staged = None

    def put_in_force(self, stated: Stated) -> None:
        """Make *stated* what its next containers run."""
        self.definition, self.data, self.definition_id = stated.definition, stated.data, stated.definition_id
        self.overrides = api_pb2.AutoscalerSettings()

    def follow(self, base: Function) -> None:
        """Of a variant: be *base* as it is now, under these options."""
        self.definition = api_pb2.Function()
        self.definition.CopyFrom(base.definition)
        apply_options(api_pb2.FunctionOptions.FromString(self.options), self.definition)
        self.data, self.definition_id, self.web_urls = base.data, base.definition_id, dict(base.web_urls)
        self.retired = base.retired

    def meta(self) -> str:
        """The small fields as they are stored."""
        return json.dumps(
            {
                "name": self.name,
                "base_id": self.base_id,
                "serialized_params": self.serialized_params.hex(),
                "options": self.options.hex(),
                "overrides": self.overrides.SerializeToString().hex(),
                "pinned": self.pinned,
                "origin_id": self.origin_id,
                "retired": self.retired,
                "definition_id": self.definition_id,
                "web_urls": self.web_urls,
            }
        )


@dataclass(slots=True)
class ModalClass:
    """A class: a name for the function that runs it."""

    id: str
    app_id: str
    function_id: str
