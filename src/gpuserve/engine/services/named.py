"""Objects with names: Modal's ways of getting and creating them, over one table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import refuse
from gpuserve.engine.services.environments import DEFAULT_ENVIRONMENT, require_environment
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.store import Store

__all__ = ["EPHEMERAL", "NamedObject", "NamedObjects", "owners", "release_app"]

# The owner of a nameless object that belongs to a client rather than to an app.
EPHEMERAL = "ephemeral"
# Source: modal 1.6.4 sends a heartbeat every 300 s for an ephemeral dict, queue or volume.
_EPHEMERAL_LIFE_S = 900.0


@dataclass(frozen=True, slots=True)
class NamedObject:
    """One row: a secret, dict, queue, volume or mount."""

    id: str
    environment: str
    name: str
    created_at: float
    body: bytes
    is_new: bool = False

    @property
    def creation_info(self) -> api_pb2.CreationInfo:
        """When, and by whom."""
        return api_pb2.CreationInfo(created_at=self.created_at, created_by="local")


class NamedObjects:
    """The objects of one kind, e.g. ``secret`` with ids that start with ``se``."""

    def __init__(self, store: Store, kind: str, prefix: str, clock: Callable[[], float] = time.time) -> None:
        """Serve *kind* from *store*."""
        self._store, self._kind, self._prefix, self._clock = store, kind, prefix, clock
        self._seen: dict[str, float] = {}
        self._began = clock()  # clients of a killed engine go on using what is theirs

    def get(self, object_id: str) -> NamedObject:
        """The object of that id, or NOT_FOUND."""
        row = self._store.one(
            "SELECT id, environment, name, created_at, body FROM objects WHERE id = ? AND kind = ?",
            (object_id, self._kind),
        )
        if row is None:
            refuse(Status.NOT_FOUND, f"{self._kind} {object_id} does not exist; it may have been deleted")
        return NamedObject(*row)

    def find(self, name: str, environment: str) -> NamedObject | None:
        """The object of that name, if there is one."""
        row = self._store.one(
            "SELECT id, environment, name, created_at, body FROM objects"
            " WHERE kind = ? AND environment = ? AND name = ?",
            (self._kind, environment or DEFAULT_ENVIRONMENT, name),
        )
        return NamedObject(*row) if row else None

    def get_or_create(
        self, name: str, environment: str, creation: int, *, app_id: str = "", body: bytes = b""
    ) -> NamedObject:
        """Do what *creation* asks for.

        Raises:
            GRPCError: NOT_FOUND or ALREADY_EXISTS, as Modal answers.
        """
        environment = environment or DEFAULT_ENVIRONMENT
        require_environment(self._store, environment)
        if creation in {api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP, api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL}:
            return self._insert("", environment, app_id or EPHEMERAL, body)
        known = self.find(name, environment)
        if known is None:
            if creation == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
                refuse(Status.NOT_FOUND, f"{self._kind} '{name}' does not exist in environment '{environment}'")
            return self._insert(name, environment, "", body)
        if creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            refuse(Status.ALREADY_EXISTS, f"{self._kind} '{name}' exists already in environment '{environment}'")
        if creation == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS:
            self.set_body(known.id, body)
        return known

    def _insert(self, name: str, environment: str, app_id: str, body: bytes) -> NamedObject:
        made = NamedObject(new_id(self._prefix), environment, name, self._clock(), body, is_new=True)
        self._store.execute(
            "INSERT INTO objects (id, kind, environment, name, app_id, created_at, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (made.id, self._kind, environment, name, app_id, made.created_at, body),
        )
        return made

    def keep_body(self, body: bytes) -> str:
        """The id of a nameless object that nobody owns, and that all who keep the same body share."""
        kept = f"{self._prefix}-{hashlib.sha256(body).hexdigest()[:22]}"
        self._store.execute(
            "INSERT OR IGNORE INTO objects (id, kind, environment, name, app_id, created_at, body)"
            " VALUES (?, ?, ?, '', '', ?, ?)",
            (kept, self._kind, DEFAULT_ENVIRONMENT, time.time(), body),
        )
        return kept

    def set_body(self, object_id: str, body: bytes) -> None:
        """Replace what is kept with an object."""
        self._store.execute("UPDATE objects SET body = ? WHERE id = ?", (body, object_id))

    def rename(self, object_id: str, name: str) -> None:
        """Give an object another name, if it is free."""
        one = self.get(object_id)
        if self.find(name, one.environment) is not None:
            refuse(Status.ALREADY_EXISTS, f"{self._kind} '{name}' exists already")
        self._store.execute("UPDATE objects SET name = ? WHERE id = ?", (name, object_id))

    def list(self, environment: str, pagination: api_pb2.ListPagination) -> list[NamedObject]:
        """Named objects, newest first."""
        most = pagination.max_objects or 100
        before = pagination.created_before or time.time() + 1
        rows = self._store.query(
            "SELECT id, environment, name, created_at, body FROM objects WHERE kind = ? AND environment = ?"
            " AND name != '' AND created_at < ? ORDER BY created_at DESC LIMIT ?",
            (self._kind, environment or DEFAULT_ENVIRONMENT, before, most),
        )
        return [NamedObject(*row) for row in rows]

    def owned_by(self, app_id: str) -> tuple[str, ...]:
        """The ids of the nameless objects of an app."""
        rows = self._store.query(
            "SELECT id FROM objects WHERE app_id = ? AND name = '' AND kind = ?", (app_id, self._kind)
        )
        return tuple(object_id for (object_id,) in rows)

    def touch(self, object_id: str) -> None:
        """An ephemeral object is in use."""
        self.get(object_id)
        self._seen[object_id] = self._clock()

    def unused(self) -> tuple[str, ...]:
        """The ephemeral objects that no client has been heard of for lately."""
        limit = self._clock() - _EPHEMERAL_LIFE_S
        rows = self._store.query(
            "SELECT id FROM objects WHERE app_id = ? AND kind = ? AND created_at < ?", (EPHEMERAL, self._kind, limit)
        )
        return tuple(object_id for (object_id,) in rows if self._seen.get(object_id, self._began) < limit)

    def delete(self, object_id: str) -> None:
        """Delete an object's row."""
        self.get(object_id)
        self._seen.pop(object_id, None)
        self._store.execute("DELETE FROM objects WHERE id = ?", (object_id,))


def owners(store: Store) -> list[str]:
    """The apps that own nameless objects."""
    rows = store.query("SELECT DISTINCT app_id FROM objects WHERE app_id != '' AND app_id != ?", (EPHEMERAL,))
    return [app_id for (app_id,) in rows]


def release_app(store: Store, app_id: str) -> None:
    """Delete the nameless objects that an app owned."""
    store.execute("DELETE FROM objects WHERE app_id = ? AND name = ''", (app_id,))
