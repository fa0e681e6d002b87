"""The two chunk streams of a call: data in (a request's body) and data out (what a generator yields)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gpuserve.engine.protocol import api_pb2
from gpuserve.exceptions import EngineError

__all__ = ["Stream", "Streams"]

# A writer waits while this much is unread, and as much that was read is kept for a reader that lost it.
# Source: our choice; a client's HTTP/2 window is 64 MiB.
_MOST_UNREAD_BYTES = _MOST_KEPT_BYTES = 32 << 20


@dataclass(slots=True)
class Stream:
    """Chunks in order, numbered from 1; those that were read long ago are let go.

    Attributes:
        chunks: What is held: the chunks after number ``dropped``.
        read_to: The highest number that a reader got.
    """

    chunks: deque[api_pb2.DataChunk] = field(default_factory=deque)
    blobs: list[str] = field(default_factory=list)
    dropped: int = 0
    read_to: int = 0
    ended: bool = False
    unread: int = 0
    kept: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def count(self) -> int:
        """How many chunks were put so far."""
        return self.dropped + len(self.chunks)

    def put(self, chunk: api_pb2.DataChunk) -> None:
        """Add a chunk; one whose number was seen before, and any after the end, is dropped."""
        if self.ended or (chunk.index and chunk.index <= self.count):
            return
        chunk.index = self.count + 1
        self.chunks.append(chunk)
        self.unread += len(chunk.data)
        if chunk.data_blob_id:
            self.blobs.append(chunk.data_blob_id)
        self._wake()

    def end(self) -> None:
        """No more chunks will come."""
        self.ended = True
        self._wake()

    async def drained(self) -> None:
        """Wait until a reader has caught up enough for more to be written, or the call has ended."""
        while not self.ended and self.unread > _MOST_UNREAD_BYTES:
            await self.changed.wait()

    async def read(self, after: int) -> AsyncIterator[api_pb2.DataChunk]:
        """Yield chunks after number *after*, as they come, until the end.

        Raises:
            EngineError: If chunks that this reader wants were let go, since another had read past them.
        """
        while True:
            changed = self.changed
            while after < self.count:
                if after < self.dropped:
                    raise EngineError(f"chunk {after + 1} of this stream was read before, and let go")
                chunk = self.chunks[after - self.dropped]
                after += 1
                yield chunk
                self._was_read(chunk)
            if self.ended:
                return
            await changed.wait()

    def _was_read(self, chunk: api_pb2.DataChunk) -> None:
        if chunk.index != self.read_to + 1:
            return
        self.read_to = chunk.index
        self.unread -= len(chunk.data)
        self.kept += len(chunk.data)
        while self.kept > _MOST_KEPT_BYTES and self.dropped < self.read_to:
            self.kept -= len(self.chunks.popleft().data)
            self.dropped += 1
        self._wake()


class Streams:
    """The streams of all calls."""

    def __init__(self) -> None:
        """Start empty."""
        self._in: dict[str, Stream] = {}
        self._out: dict[str, Stream] = {}

    def data_in(self, call_id: str) -> Stream:
        """What a call's container reads."""
        return self._in.setdefault(call_id, Stream())

    def data_out(self, call_id: str) -> Stream:
        """What a call's container writes."""
        return self._out.setdefault(call_id, Stream())

    def finish(self, call_id: str) -> None:
        """The call has its result: both streams end where they are."""
        for streams in (self._in, self._out):
            if call_id in streams:
                streams[call_id].end()

    def drop(self, call_id: str) -> list[str]:
        """Free a call's chunks; return the ids of the blobs that they named."""
        self.finish(call_id)
        gone = [self._in.pop(call_id, None), self._out.pop(call_id, None)]
        return [blob for stream in gone if stream is not None for blob in stream.blobs]
