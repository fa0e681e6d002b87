"""The RPCs of data streams: request bodies in, generators' values and responses out."""

from __future__ import annotations

from collections.abc import AsyncIterator

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.calls import CallTable
from gpuserve.engine.state.streams import Streams

__all__ = ["StreamService"]


class StreamService:
    """Reads and writes `Streams` for callers and containers."""

    def __init__(self, streams: Streams, calls: CallTable) -> None:
        """Serve *streams*; *calls* knows which container runs what."""
        self._streams, self._calls = streams, calls

    def _is_strange(self, call_id: str, caller: Caller) -> bool:
        return caller.is_container and not self._calls.holds(caller.task_id, call_id)

    async def FunctionCallGetDataIn(
        self, request: api_pb2.FunctionCallGetDataRequest, caller: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        """A call's input stream, open until the call ends; for the container that runs it."""
        if self._is_strange(request.function_call_id, caller):
            refuse(Status.PERMISSION_DENIED, "a container may only read the data of a call that it runs")
        async for chunk in self._streams.data_in(request.function_call_id).read(request.last_index):
            yield chunk

    async def FunctionCallGetDataOut(
        self, request: api_pb2.FunctionCallGetDataRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.DataChunk]:
        """A call's output stream, open until the call ends."""
        call = self._calls.calls.get(request.function_call_id)
        if call is None:
            refuse(Status.NOT_FOUND, f"function call {request.function_call_id} does not exist, or is long over")
        stream = self._streams.data_out(call.id)
        if call.inputs and not call.unfinished:
            stream.end()
        if request.last_index < stream.dropped:
            refuse(Status.OUT_OF_RANGE, f"the values up to number {stream.dropped} were read before, and let go")
        async for chunk in stream.read(request.last_index):
            yield chunk

    async def FunctionCallPutDataOut(self, request: api_pb2.FunctionCallPutDataRequest, caller: Caller) -> Empty:
        """Add to a call's output stream; the answer is held back while its reader lags.

        What comes for a call that is no longer the container's is dropped, as its results are.
        """
        if self._is_strange(request.function_call_id, caller):
            return Empty()
        stream = self._streams.data_out(request.function_call_id)
        for chunk in request.data_chunks:
            stream.put(chunk)
        await stream.drained()
        return Empty()
