"""Objects to act on, and the proof that a repeated idempotency key has one effect and one answer."""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from grpclib import Status

from gpuserve.engine import LocalEngine
from gpuserve.engine.protocol import api_pb2


@dataclass(frozen=True)
class Case:
    """One RPC: what is sent, what else may not be sent under its key, and how its effect is seen.

    ``between`` changes the state after the first call in a way that a second effect would undo;
    where there is none, the effect must show in ``probe``.
    """

    fields: Mapping[str, Any]
    other: Mapping[str, Any] | None
    probe: Callable[[], Any] = lambda: None
    between: Callable[[], Any] | None = None


class World:
    """Fresh objects to act on, and the proof that a repeated key has one effect."""

    case = Case

    def __init__(self, engine: LocalEngine, client: Any, on_loop: Callable[[Any], Any]) -> None:
        self.core, self.on_loop = engine.core, on_loop
        self.call, self.refusal, self.request, self.together = (
            client.call,
            client.refusal,
            client.request,
            client.together,
        )

    def replay(self, rpc: str, case: Case, wire: Any = None) -> None:
        """Send one request three times under one key, then another one under it."""
        call, refusal = (wire.call, wire.refusal) if wire else (self.call, self.refusal)
        key, before = uuid.uuid4().hex, case.probe()
        first = call(rpc, idempotency=key, **case.fields)
        if case.between is not None:
            case.between()
        after = case.probe()
        assert case.between is not None or before != after, "the first call had no effect"
        for _ in range(2):
            assert call(rpc, idempotency=key, **case.fields) == first
        assert case.probe() == after
        if case.other is not None:
            assert refusal(rpc, idempotency=key, **case.other) is Status.INVALID_ARGUMENT
            assert case.probe() == after

    def made(self, kind, **fields):
        """The id of a new nameless object."""
        reply = self.call(f"{kind}GetOrCreate", object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL, **fields)
        return getattr(reply, f"{kind.lower()}_id")

    def dict(self, **entries):
        return self.made(
            "Dict", data=[api_pb2.DictEntry(key=key.encode(), value=value) for key, value in entries.items()]
        )

    def entries(self, ident):
        found = self.call("DictContents", dict_id=ident, keys=True, values=True)
        return {entry.key: entry.value for entry in found}

    def queue(self, *values):
        ident = self.made("Queue")
        self.call("QueuePut", queue_id=ident, values=values)
        return ident

    def items(self, ident):
        return [one.value for one in self.call("QueueNextItems", queue_id=ident).items]

    def ids(self, kind):
        """The ids of every object of a kind, nameless ones too."""
        return {row[0] for row in self.core.store.query("SELECT id FROM objects WHERE kind = ?", (kind,))}

    def exists(self, ident):
        return bool(self.core.store.one("SELECT 1 FROM objects WHERE id = ?", (ident,)))

    def volume(self, **files):
        ident = self.made("Volume")
        for name, text in files.items():
            self.write(ident, name, text)
        return ident

    def write(self, ident, name, text):
        (self.core.volumes.host_folder(ident) / name).write_text(text)

    def upload(self, url, data):
        """Send a block to the engine's side door."""
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=data), timeout=10) as answer:
            assert answer.status == 200

    def files(self, ident):
        folder = self.core.volumes.host_folder(ident)
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    def app(self, state=api_pb2.APP_STATE_INITIALIZING):
        return self.call("AppCreate", description=uuid.uuid4().hex, app_state=state).app_id

    def apps(self):
        return {app.app_id: app.state for app in self.call("AppList").apps}

    def function(self, **fields):
        """A function of a deployed app, for which no container is started."""
        app = self.app()
        definition = api_pb2.Function(function_name="f", module_name="none", **fields)
        ident = self.call("FunctionCreate", app_id=app, function=definition).function_id
        self.core.scheduler.pool(ident).not_before = float("inf")
        self.call(
            "AppPublish",
            app_id=app,
            name=uuid.uuid4().hex,
            app_state=api_pb2.APP_STATE_DEPLOYED,
            function_ids={"f": ident},
        )
        return ident

    def secret(self, **values):
        return self.made("Secret", env_dict=values)


@pytest.fixture
def world(engine: LocalEngine, client: Any, on_loop: Callable[[Any], Any]) -> World:
    """Objects on this module's engine."""
    return World(engine, client, on_loop)
