"""HTTP requests as calls: what the ingress needs of the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.services.calls import CallService, Completions
from gpuserve.engine.state.calls import CallTable, failure
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.workers.scheduler import Scheduler
from gpuserve.engine.workers.server_proxy import Address
from gpuserve.engine.workers.tasks import Task
from gpuserve.exceptions import EngineError

__all__ = ["EngineWebCalls"]

_PROBE_EVERY_S = 0.05
_WAIT_S = 600.0


class EngineWebCalls:
    """Starts one call a request, and finds the port of a server's container."""

    def __init__(
        self,
        registry: Registry,
        calls: CallTable,
        scheduler: Scheduler,
        service: CallService,
        completions: Completions,
    ) -> None:
        """Keep the tables."""
        self._registry, self._calls, self._scheduler = registry, calls, scheduler
        self._service, self._completions = service, completions

    async def start(self, function_id: str, method_name: str, args: bytes) -> str:
        """Queue one input and return its call's id."""
        function = self._registry.functions.get(function_id)
        app = self._registry.apps.get(function.app_id) if function else None
        if function is None or app is None or not app.is_live:
            raise EngineError("the app behind this address was stopped")
        # a request is not run twice: its body has been read
        call = self._service.begin(
            function,
            kind=api_pb2.FUNCTION_CALL_TYPE_UNARY,
            invocation=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
            most_crashes=0,
        )
        call.retry_policy = api_pb2.FunctionRetryPolicy()
        payload = api_pb2.FunctionInput(args=args, data_format=api_pb2.DATA_FORMAT_CBOR, method_name=method_name)
        self._calls.add(call, 0, payload)
        self._scheduler.poke(function_id)
        return call.id

    async def result(self, function_call_id: str) -> api_pb2.GenericResult:
        """Wait for the final result of a request's only input, and forget the call."""
        call = self._calls.calls.get(function_call_id)
        if call is None:
            return failure("the call is gone")
        while call.unfinished:
            await self._completions.wait(call.id, _WAIT_S)
        result = call.outputs[0].result
        self._service.drop_later(self._calls.forget(call.id))
        return result

    def cancel(self, function_call_id: str) -> None:
        """Nobody waits for the answer any more."""
        call = self._calls.calls.get(function_call_id)
        if call is not None and call.unfinished:
            self._scheduler.cancel(call, terminate_containers=False)

    @asynccontextmanager
    async def server(self, function_id: str) -> AsyncIterator[Address]:
        """Wait until a container of an ``@app.server`` answers on its port, and keep it for a request's time."""
        function = self._registry.functions.get(function_id)
        if function is None:
            raise EngineError("the app behind this address was stopped")
        config = function.definition.http_config
        pool = self._scheduler.pool(function_id)
        pool.server_waiters += 1
        try:
            task = next((task for task in pool.alive() if task.answers), None)
            if task is None:
                task = await self._answering(function_id, config.port, config.startup_timeout or 60)
            yield Address(task.id, f"http://127.0.0.1:{config.port}", task.stopped_answering)
        finally:
            pool.server_waiters -= 1
            for task in pool.alive():
                task.idle_since = time.monotonic()

    async def _answering(self, function_id: str, port: int, timeout_s: float) -> Task:
        """The container that has the port, once something answers there."""
        pool = self._scheduler.pool(function_id)
        crashes, pool.last_failure = pool.crashes_at_start, ""
        self._scheduler.poke(function_id)
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            ready = next((task for task in pool.alive() if task.ready), None)
            if ready is not None and await _answers(port):
                ready.answers = True
                return ready
            if pool.crashes_at_start > crashes:
                why = pool.last_failure or "its process ended; see the app's logs"
                raise EngineError(f"the server's container failed as it started: {why}")
            await asyncio.sleep(_PROBE_EVERY_S)  # noqa: TID251 (a port has no event to wait on)
        raise EngineError(f"the server did not listen on port {port} within its start-up time-out of {timeout_s:.0f} s")


async def _answers(port: int) -> bool:
    try:
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
