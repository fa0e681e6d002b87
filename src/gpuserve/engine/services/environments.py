"""The first things a client asks: is anybody there, and which environment am I in."""

from __future__ import annotations

import base64
import json
import shlex
import time

from grpclib import Status

from gpuserve.engine.protocol import IMAGE_BUILDER_VERSION, Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.store import Store

__all__ = ["DEFAULT_ENVIRONMENT", "EnvironmentService", "require_environment"]

DEFAULT_ENVIRONMENT = "main"
_TABLE = "CREATE TABLE IF NOT EXISTS environments (name TEXT PRIMARY KEY, id TEXT NOT NULL, created_at REAL NOT NULL)"
_TOKEN_LIFE_S = 3600


def require_environment(store: Store, name: str) -> str:
    """The id of the environment of that name.

    Raises:
        GRPCError: NOT_FOUND, with those that there are, if it does not exist.
    """
    row = store.one("SELECT id FROM environments WHERE name = ?", (name,))
    if row is None:
        known = ", ".join(one for (one,) in store.query("SELECT name FROM environments ORDER BY name"))
        refuse(
            Status.NOT_FOUND,
            f"environment '{name}' does not exist; there is {known}. Create it: "
            f"modal environment create {shlex.quote(name)} (here: gpuserve local environment create …)",
        )
    return str(row[0])


class EnvironmentService:
    """Environments, greetings and tokens."""

    def __init__(self, store: Store) -> None:
        """Make sure that the default environment exists."""
        self._store = store
        store.create_tables(_TABLE)
        self._create(DEFAULT_ENVIRONMENT)

    def _create(self, name: str) -> None:
        self._store.execute(
            "INSERT OR IGNORE INTO environments (name, id, created_at) VALUES (?, ?, ?)",
            (name, new_id("en"), time.time()),
        )

    async def ClientHello(self, _request: Empty, _caller: Caller) -> api_pb2.ClientHelloResponse:
        """Greet a client."""
        return api_pb2.ClientHelloResponse(image_builder_version=IMAGE_BUILDER_VERSION)

    def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        """Look up an environment; an empty name means the default one."""
        name = request.deployment_name or DEFAULT_ENVIRONMENT
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            self._create(name)
        environment_id = require_environment(self._store, name)
        settings = api_pb2.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=environment_id, metadata=api_pb2.EnvironmentMetadata(name=name, settings=settings)
        )

    def EnvironmentCreate(self, request: api_pb2.EnvironmentCreateRequest, _caller: Caller) -> Empty:
        """Create an environment."""
        if self._store.one("SELECT 1 FROM environments WHERE name = ?", (request.name,)):
            refuse(Status.ALREADY_EXISTS, f"environment '{request.name}' exists already")
        self._create(request.name)
        return Empty()

    async def EnvironmentList(self, _request: Empty, _caller: Caller) -> api_pb2.EnvironmentListResponse:
        """All environments."""
        rows = self._store.query("SELECT name, id, created_at FROM environments ORDER BY created_at")
        items = [
            api_pb2.EnvironmentListItem(
                name=name, environment_id=ident, created_at=created_at, default=name == DEFAULT_ENVIRONMENT
            )
            for name, ident, created_at in rows
        ]
        return api_pb2.EnvironmentListResponse(items=items)

    async def AuthTokenGet(self, _request: object, _caller: Caller) -> api_pb2.AuthTokenGetResponse:
        """A token whose only reader is the client itself: it looks at ``exp`` and nothing checks it."""
        claims = {"exp": int(time.time()) + _TOKEN_LIFE_S, "iat": int(time.time())}
        parts = [{"alg": "none", "typ": "JWT"}, claims]
        encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        return api_pb2.AuthTokenGetResponse(token=".".join([*encoded, "local"]))

    async def WorkspaceNameLookup(self, _request: Empty, _caller: Caller) -> api_pb2.WorkspaceNameLookupResponse:
        """The engine is one workspace."""
        return api_pb2.WorkspaceNameLookupResponse(workspace_name="local", username="local")

    async def TokenInfoGet(self, _request: object, _caller: Caller) -> api_pb2.TokenInfoGetResponse:
        """Which token is in use."""
        return api_pb2.TokenInfoGetResponse(token_id="local", workspace_id="local", workspace_name="local")  # noqa: S106 (a name)
