"""The RPCs of data streams: request bodies in, generators' values and responses out."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller
from gpuserve.engine.state.streams import Streams

__all__ = ["StreamService"]


class StreamService:
    """Reads and writes `Streams` for callers and containers."""

    def __init__(self, streams: Streams) -> None:
        """Serve *streams*."""
        self._streams = streams

    async def FunctionCallGetDataIn(
        self, request: api_pb2.FunctionCallGetDataRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        """A call's input stream, open until the call ends."""
        async for chunk in self._streams.data_in(request.function_call_id).read(request.last_index):
            yield chunk

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        """A call's output stream, open until the call ends."""
        async for chunk in self._streams.data_out(request.function_call_id).read(request.last_index):
            yield chunk

    async def FunctionCallPutDataOut(self, request: api_pb2.FunctionCallPutDataRequest, _caller: Caller) -> Empty:
        """Add to a call's output stream; the answer is held back while its reader lags."""
        stream = self._streams.data_out(request.function_call_id)
        for chunk in request.data_chunks:
            stream.put(chunk)
        await stream.drained()
        return Empty()
