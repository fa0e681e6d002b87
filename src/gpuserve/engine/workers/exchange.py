"""One request of a web endpoint as a call: what it says goes in as messages, and messages come out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import cbor2

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.streams import Streams

__all__ = ["Exchange", "Exchanges", "WebCalls"]

# An app that is told that its client has gone may end by itself for this long. Source: our choice.
_LEAVE_S = 2.0


class WebCalls(Protocol):
    """What the ingress needs of the engine."""

    async def start(self, function_id: str, method_name: str, args: bytes) -> str:
        """Queue one request; return its call's id."""

    async def result(self, function_call_id: str) -> api_pb2.GenericResult:
        """Wait for the call's result."""

    def cancel(self, function_call_id: str) -> None:
        """Nobody waits any more."""


class Exchange:
    """The two streams and the result of one request's call."""

    def __init__(self, call_id: str, web_calls: WebCalls, streams: Streams, read_blob: Callable[[str], bytes]) -> None:
        """Follow the call *call_id*."""
        self.call_id, self._calls, self._streams, self._read_blob = call_id, web_calls, streams, read_blob
        self.result = asyncio.ensure_future(web_calls.result(call_id))
        self.messages = self._messages()

    async def say(self, **message: Any) -> None:
        """Send the app one message, when it has taken enough of those before."""
        data = api_pb2.Asgi(**message).SerializeToString()
        stream = self._streams.data_in(self.call_id)
        stream.put(api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=data))
        await stream.drained()

    async def _messages(self) -> AsyncIterator[api_pb2.Asgi]:
        async for chunk in self._streams.data_out(self.call_id).read(0):
            data = self._read_blob(chunk.data_blob_id) if chunk.data_blob_id else chunk.data
            yield api_pb2.Asgi.FromString(data)

    async def failed(self) -> bool:
        """Whether the call ended in an error, once it has ended."""
        return (await self.result).status != api_pb2.GenericResult.GENERIC_STATUS_SUCCESS

    async def finish(self) -> None:
        """Wait for the app to return, which may be after its whole answer, and let go of the call."""
        await self.result
        self._streams.drop(self.call_id)

    async def leave(self, **farewell: Any) -> None:
        """The client has gone: tell the app, and break off what does not end by itself."""
        data = api_pb2.Asgi(**farewell).SerializeToString()
        self._streams.data_in(self.call_id).put(api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=data))
        self._streams.data_out(self.call_id).end()  # or an app that still writes would wait for a reader
        await asyncio.wait([self.result], timeout=_LEAVE_S)
        if not self.result.done():
            self._calls.cancel(self.call_id)
        await self.finish()


class Exchanges:
    """The exchanges of all endpoints; those that nobody waits for any more are seen to their end."""

    def __init__(self, web_calls: WebCalls, streams: Streams, read_blob: Callable[[str], bytes]) -> None:
        """Keep the collaborators."""
        self._calls, self._streams, self._read_blob = web_calls, streams, read_blob
        self._jobs: set[asyncio.Task[None]] = set()

    async def begin(self, function_id: str, method_name: str, scope: dict[str, Any]) -> Exchange:
        """Queue the call of one request.

        Raises:
            EngineError: If the app was stopped.
        """
        call_id = await self._calls.start(function_id, method_name, cbor2.dumps([[scope], {}]))
        return Exchange(call_id, self._calls, self._streams, self._read_blob)

    def see_to(self, work: Any) -> None:
        """Run what is left of an exchange in the background."""
        job = asyncio.ensure_future(work)
        self._jobs.add(job)  # asyncio keeps weak references only
        job.add_done_callback(self._jobs.discard)

    async def close(self) -> None:
        """Break off what is left."""
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
