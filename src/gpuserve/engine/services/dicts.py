"""`modal.Dict`: opaque keys and values, each write on disk before it is acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller
from gpuserve.engine.services.named import NamedObject, NamedObjects
from gpuserve.engine.store import Store

__all__ = ["DictService"]

_TABLE = """
CREATE TABLE IF NOT EXISTS dict_entries (
    dict_id TEXT NOT NULL REFERENCES objects (id) ON DELETE CASCADE, key BLOB NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (dict_id, key));
"""


class DictService:
    """All Dict RPCs."""

    def __init__(self, store: Store) -> None:
        """Keep entries in *store*."""
        self._store = store
        store.create_tables(_TABLE)
        self._objects = NamedObjects(store, "dict", "di")

    def _metadata(self, one: NamedObject) -> api_pb2.DictMetadata:
        return api_pb2.DictMetadata(name=one.name, creation_info=one.creation_info)

    def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.DictGetOrCreateResponse:
        """Find or create a dict."""
        one = self._objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        if one.is_new:
            self._put(one.id, request.data)
        return api_pb2.DictGetOrCreateResponse(dict_id=one.id, metadata=self._metadata(one))

    def _put(self, dict_id: str, entries: object) -> None:
        for entry in entries:  # type: ignore[attr-defined]
            self._store.execute(
                "INSERT OR REPLACE INTO dict_entries (dict_id, key, value) VALUES (?, ?, ?)",
                (dict_id, entry.key, entry.value),
            )

    def DictUpdate(self, request: api_pb2.DictUpdateRequest, _caller: Caller) -> api_pb2.DictUpdateResponse:
        """Set entries; with ``if_not_exists``, only a key that is not there."""
        self._objects.get(request.dict_id)
        if not request.if_not_exists:
            self._put(request.dict_id, request.updates)
            return api_pb2.DictUpdateResponse(created=True)
        created = 0
        for entry in request.updates:
            created += self._store.execute(
                "INSERT OR IGNORE INTO dict_entries (dict_id, key, value) VALUES (?, ?, ?)",
                (request.dict_id, entry.key, entry.value),
            )
        return api_pb2.DictUpdateResponse(created=created > 0)

    def _value(self, dict_id: str, key: bytes) -> bytes | None:
        self._objects.get(dict_id)
        row = self._store.one("SELECT value FROM dict_entries WHERE dict_id = ? AND key = ?", (dict_id, key))
        return bytes(row[0]) if row else None

    async def DictGet(self, request: api_pb2.DictGetRequest, _caller: Caller) -> api_pb2.DictGetResponse:
        """One value."""
        value = self._value(request.dict_id, request.key)
        return api_pb2.DictGetResponse(found=value is not None, value=value)

    def DictPop(self, request: api_pb2.DictPopRequest, _caller: Caller) -> api_pb2.DictPopResponse:
        """Take one value out."""
        value = self._value(request.dict_id, request.key)
        self._store.execute("DELETE FROM dict_entries WHERE dict_id = ? AND key = ?", (request.dict_id, request.key))
        return api_pb2.DictPopResponse(found=value is not None, value=value)

    async def DictContains(self, request: api_pb2.DictContainsRequest, _caller: Caller) -> api_pb2.DictContainsResponse:
        """Whether a key is there."""
        return api_pb2.DictContainsResponse(found=self._value(request.dict_id, request.key) is not None)

    async def DictLen(self, request: api_pb2.DictLenRequest, _caller: Caller) -> api_pb2.DictLenResponse:
        """How many entries there are."""
        self._objects.get(request.dict_id)
        row = self._store.one("SELECT count(*) FROM dict_entries WHERE dict_id = ?", (request.dict_id,))
        return api_pb2.DictLenResponse(len=row[0] if row else 0)

    async def DictContents(
        self, request: api_pb2.DictContentsRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.DictEntry]:
        """Keys, values or both of every entry."""
        self._objects.get(request.dict_id)
        for key, value in self._store.query(
            "SELECT key, value FROM dict_entries WHERE dict_id = ? ORDER BY rowid", (request.dict_id,)
        ):
            yield api_pb2.DictEntry(key=key if request.keys else b"", value=value if request.values else b"")

    def DictClear(self, request: api_pb2.DictClearRequest, _caller: Caller) -> Empty:
        """Remove every entry."""
        self._objects.get(request.dict_id)
        self._store.execute("DELETE FROM dict_entries WHERE dict_id = ?", (request.dict_id,))
        return Empty()

    def DictDelete(self, request: api_pb2.DictDeleteRequest, _caller: Caller) -> Empty:
        """Delete the dict with its entries."""
        self._objects.delete(request.dict_id)
        return Empty()

    def expire(self) -> None:
        """Delete the ephemeral dicts whose clients are gone, in the present transaction."""
        for dict_id in self._objects.unused():
            self._objects.delete(dict_id)

    async def DictHeartbeat(self, request: api_pb2.DictHeartbeatRequest, _caller: Caller) -> Empty:
        """An ephemeral dict is in use."""
        self._objects.touch(request.dict_id)
        return Empty()

    async def DictGetById(self, request: api_pb2.DictGetByIdRequest, _caller: Caller) -> api_pb2.DictGetByIdResponse:
        """Look a dict up by id."""
        one = self._objects.get(request.dict_id)
        return api_pb2.DictGetByIdResponse(dict_id=one.id, metadata=self._metadata(one))

    async def DictList(self, request: api_pb2.DictListRequest, _caller: Caller) -> api_pb2.DictListResponse:
        """Named dicts, newest first."""
        found = [
            api_pb2.DictListResponse.DictInfo(
                name=one.name, created_at=one.created_at, dict_id=one.id, metadata=self._metadata(one)
            )
            for one in self._objects.list(request.environment_name, request.pagination)
        ]
        return api_pb2.DictListResponse(dicts=found, environment_name=request.environment_name)
