"""`modal.Queue`: first in, first out in each partition; durable, and taken at most once.

Items leave the queue in one transaction with the answer that hands them out. A client that repeats
its call, also after a restart of the engine, gets the same items; one that dies before it has read
the answer takes them with it.
"""

from __future__ import annotations

import asyncio
import time

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.named import NamedObject, NamedObjects
from gpuserve.engine.store import Store

__all__ = ["QueueService"]

# Source: modal.com/docs/reference/modal.Queue: at most 5,000 items a partition.
_MOST_ITEMS = 5_000
_LONGEST_WAIT_S = 60.0
_TABLE = """
CREATE TABLE IF NOT EXISTS queue_items (
    entry INTEGER PRIMARY KEY AUTOINCREMENT, queue_id TEXT NOT NULL REFERENCES objects (id) ON DELETE CASCADE,
    partition BLOB NOT NULL, value BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS queue_order ON queue_items (queue_id, partition, entry);
CREATE TABLE IF NOT EXISTS queue_partitions (
    queue_id TEXT NOT NULL REFERENCES objects (id) ON DELETE CASCADE, partition BLOB NOT NULL,
    ttl_s REAL NOT NULL, ends_at REAL NOT NULL, PRIMARY KEY (queue_id, partition));
"""
# Source: modal.com/docs/reference/modal.Queue: a partition that nobody uses for 24 hours is deleted.
_PARTITION_TTL_S = 86_400


class QueueService:
    """All Queue RPCs."""

    def __init__(self, store: Store) -> None:
        """Keep items in *store*."""
        self._store = store
        store.create_tables(_TABLE)
        self._objects = NamedObjects(store, "queue", "qu")
        self._added: dict[str, asyncio.Event] = {}

    def _metadata(self, one: NamedObject) -> api_pb2.QueueMetadata:
        return api_pb2.QueueMetadata(name=one.name, creation_info=one.creation_info)

    def QueueGetOrCreate(
        self, request: api_pb2.QueueGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.QueueGetOrCreateResponse:
        """Find or create a queue."""
        one = self._objects.get_or_create(
            request.deployment_name, request.environment_name, request.object_creation_type
        )
        return api_pb2.QueueGetOrCreateResponse(queue_id=one.id, metadata=self._metadata(one))

    def _queue(self, queue_id: str) -> None:
        """Refuse what is no queue, and delete its partitions that nobody has used for their time."""
        self._objects.get(queue_id)
        ended = self._store.query(
            "SELECT partition FROM queue_partitions WHERE queue_id = ? AND ends_at < ?", (queue_id, time.time())
        )
        for (partition,) in ended:
            with self._store.transaction():
                for statement in (
                    "DELETE FROM queue_items WHERE queue_id = ? AND partition = ?",
                    "DELETE FROM queue_partitions WHERE queue_id = ? AND partition = ?",
                ):
                    self._store.execute(statement, (queue_id, partition))

    def _use(self, queue_id: str, partition: bytes, ttl_s: float = 0.0) -> None:
        """A partition is used: its time begins again, with another length if one is given."""
        now = time.time()
        if ttl_s:
            self._store.execute(
                "INSERT OR REPLACE INTO queue_partitions (queue_id, partition, ttl_s, ends_at) VALUES (?, ?, ?, ?)",
                (queue_id, partition, ttl_s, now + ttl_s),
            )
        else:
            self._store.execute(
                "UPDATE queue_partitions SET ends_at = ? + ttl_s WHERE queue_id = ? AND partition = ?",
                (now, queue_id, partition),
            )

    def _count(self, queue_id: str, partition: bytes) -> int:
        row = self._store.one(
            "SELECT count(*) FROM queue_items WHERE queue_id = ? AND partition = ?", (queue_id, partition)
        )
        return int(row[0]) if row else 0

    def QueuePut(self, request: api_pb2.QueuePutRequest, _caller: Caller) -> Empty:
        """Add items at the end of a partition, all or none."""
        self._queue(request.queue_id)
        if self._count(request.queue_id, request.partition_key) + len(request.values) > _MOST_ITEMS:
            refuse(Status.RESOURCE_EXHAUSTED, f"the queue's partition is full: it holds at most {_MOST_ITEMS} items")
        for value in request.values:
            self._store.execute(
                "INSERT INTO queue_items (queue_id, partition, value) VALUES (?, ?, ?)",
                (request.queue_id, request.partition_key, value),
            )
        self._use(request.queue_id, request.partition_key, request.partition_ttl_seconds or _PARTITION_TTL_S)
        event = self._added.pop(request.queue_id, None)
        if event is not None:
            event.set()
        return Empty()

    async def _wait_for_more(self, queue_id: str, timeout_s: float) -> None:
        event = self._added.setdefault(queue_id, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    def _waits(self, request: api_pb2.QueueGetRequest) -> bool:
        return bool(
            self._store.one(
                "SELECT 1 FROM queue_items WHERE queue_id = ? AND partition = ? LIMIT 1",
                (request.queue_id, request.partition_key),
            )
        )

    def _take(self, request: api_pb2.QueueGetRequest) -> api_pb2.QueueGetResponse:
        rows = self._store.query(
            "SELECT entry, value FROM queue_items WHERE queue_id = ? AND partition = ? ORDER BY entry LIMIT ?",
            (request.queue_id, request.partition_key, max(1, request.n_values)),
        )
        if rows:
            self._use(request.queue_id, request.partition_key)
        for entry, _value in rows:
            self._store.execute("DELETE FROM queue_items WHERE entry = ?", (entry,))
        return api_pb2.QueueGetResponse(values=[value for _entry, value in rows])

    async def QueueGet(self, request: api_pb2.QueueGetRequest, caller: Caller) -> api_pb2.QueueGetResponse:
        """Take up to ``n_values`` items, waiting for the first."""
        self._queue(request.queue_id)
        deadline = time.monotonic() + max(0.0, min(request.timeout, _LONGEST_WAIT_S))
        while not self._waits(request):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return api_pb2.QueueGetResponse()
            await self._wait_for_more(request.queue_id, remaining)
        taken: api_pb2.QueueGetResponse = caller.durably(lambda: self._take(request))
        return taken

    async def QueueNextItems(
        self, request: api_pb2.QueueNextItemsRequest, _caller: Caller
    ) -> api_pb2.QueueNextItemsResponse:
        """Look at items after ``last_entry_id`` without taking them."""
        self._queue(request.queue_id)
        deadline = time.monotonic() + max(0.0, min(request.item_poll_timeout, _LONGEST_WAIT_S))
        after = int(request.last_entry_id or 0)
        while True:
            rows = self._store.query(
                "SELECT entry, value FROM queue_items WHERE queue_id = ? AND partition = ? AND entry > ?"
                " ORDER BY entry LIMIT 100",
                (request.queue_id, request.partition_key, after),
            )
            remaining = deadline - time.monotonic()
            if rows or remaining <= 0:
                items = [api_pb2.QueueItem(value=value, entry_id=str(entry)) for entry, value in rows]
                return api_pb2.QueueNextItemsResponse(items=items)
            await self._wait_for_more(request.queue_id, remaining)

    async def QueueLen(self, request: api_pb2.QueueLenRequest, _caller: Caller) -> api_pb2.QueueLenResponse:
        """How many items wait in one partition, or in all."""
        self._queue(request.queue_id)
        if not request.total:
            return api_pb2.QueueLenResponse(len=self._count(request.queue_id, request.partition_key))
        row = self._store.one("SELECT count(*) FROM queue_items WHERE queue_id = ?", (request.queue_id,))
        return api_pb2.QueueLenResponse(len=row[0] if row else 0)

    def QueueClear(self, request: api_pb2.QueueClearRequest, _caller: Caller) -> Empty:
        """Drop the items of one partition, or of all."""
        self._objects.get(request.queue_id)
        if request.all_partitions:
            self._store.execute("DELETE FROM queue_items WHERE queue_id = ?", (request.queue_id,))
        else:
            self._store.execute(
                "DELETE FROM queue_items WHERE queue_id = ? AND partition = ?",
                (request.queue_id, request.partition_key),
            )
        return Empty()

    def QueueDelete(self, request: api_pb2.QueueDeleteRequest, _caller: Caller) -> Empty:
        """Delete the queue with its items."""
        self._objects.delete(request.queue_id)
        return Empty()

    def expire(self) -> None:
        """Delete the ephemeral queues whose clients are gone, in the present transaction."""
        for queue_id in self._objects.unused():
            self._objects.delete(queue_id)

    async def QueueHeartbeat(self, request: api_pb2.QueueHeartbeatRequest, _caller: Caller) -> Empty:
        """An ephemeral queue is in use."""
        self._objects.touch(request.queue_id)
        return Empty()

    async def QueueGetById(self, request: api_pb2.QueueGetByIdRequest, _caller: Caller) -> api_pb2.QueueGetByIdResponse:
        """Look a queue up by id."""
        one = self._objects.get(request.queue_id)
        return api_pb2.QueueGetByIdResponse(queue_id=one.id, metadata=self._metadata(one))

    async def QueueList(self, request: api_pb2.QueueListRequest, _caller: Caller) -> api_pb2.QueueListResponse:
        """Named queues, newest first."""
        found = []
        for one in self._objects.list(request.environment_name, request.pagination):
            row = self._store.one(
                "SELECT count(*), count(DISTINCT partition) FROM queue_items WHERE queue_id = ?", (one.id,)
            ) or (0, 0)
            found.append(
                api_pb2.QueueListResponse.QueueInfo(
                    name=one.name,
                    created_at=one.created_at,
                    queue_id=one.id,
                    total_size=row[0],
                    num_partitions=row[1],
                    metadata=self._metadata(one),
                )
            )
        return api_pb2.QueueListResponse(queues=found, environment_name=request.environment_name)
