"""The two chunk streams of a call: data in (a request's body) and data out (what a generator yields)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gpuserve.engine.protocol import api_pb2

__all__ = ["Stream", "Streams"]

# A writer waits while this much is unread. Source: our choice; a client's HTTP/2 window is 64 MiB.
_MOST_UNREAD_BYTES = 32 << 20


@dataclass(slots=True)
class Stream:
    """An append-only list of chunks, numbered from 1."""

    chunks: list[api_pb2.DataChunk] = field(default_factory=list)
    ended: bool = False
    unread: int = 0
    has_reader: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def put(self, chunk: api_pb2.DataChunk) -> None:
        """Add a chunk; one whose number was seen before is dropped."""
        if chunk.index and chunk.index <= len(self.chunks):
            return
        chunk.index = len(self.chunks) + 1
        self.chunks.append(chunk)
        self.unread += len(chunk.data)
        self._wake()

    def end(self) -> None:
        """No more chunks will come."""
        self.ended = True
        self._wake()

    async def drained(self) -> None:
        """Wait until a reader has caught up enough for more to be written."""
        while self.has_reader and not self.ended and self.unread > _MOST_UNREAD_BYTES:
            await self.changed.wait()

    async def read(self, after: int) -> AsyncIterator[api_pb2.DataChunk]:
        """Yield chunks after number *after*, as they come, until the end."""
        self.has_reader = True
        while True:
            changed = self.changed
            while after < len(self.chunks):
                chunk = self.chunks[after]
                after += 1
                yield chunk
                self.unread = max(0, self.unread - len(chunk.data))
                self._wake()
            if after >= len(self.chunks):
                if self.ended:
                    return
                await changed.wait()


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

    def drop(self, call_id: str) -> None:
        """Free a call's chunks."""
        self.finish(call_id)
        self._in.pop(call_id, None)
        self._out.pop(call_id, None)
