"""The floor: a control plane that answers Modal's client and container runtime, and does nothing else.

No token, no store, no idempotency, no isolation, no scaling, no time-outs, no logs: what a call costs here is
what Modal's own client and runtime cost, so the engine's own share is the rest. A container is a plain
``python -m modal._container_entrypoint``.

Run by `benchmarks.engine.run` as ``python -m benchmarks.engine.null_servicer SOCKET SOURCES``.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import grpclib.const
from grpclib import GRPCError, Status
from grpclib.server import Server, Stream
from modal_proto import api_pb2

from gpuserve.engine.protocol import RPCS, Empty, Rpc

_HOLD_S = 30.0
_HEARTBEAT_S = 14.0
_SUCCESS = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)


class NullServicer:
    """Each method answers the RPC of its name."""

    def __init__(self, socket: str, sources: str) -> None:
        self._url, self._sources = f"unix://{socket}", sources
        self._numbers = itertools.count(1)
        self._functions: dict[str, api_pb2.Function] = {}
        self._app_functions: dict[str, str] = {}
        self._queues: defaultdict[str, deque[api_pb2.FunctionGetInputsItem]] = defaultdict(deque)
        self._waiting: defaultdict[str, deque[asyncio.Future[None]]] = defaultdict(deque)
        self._call_function: dict[str, str] = {}
        self._outputs: defaultdict[str, list[api_pb2.FunctionGetOutputsItem]] = defaultdict(list)
        self._changed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._of_input: dict[str, tuple[str, int]] = {}
        self._containers: dict[str, list[asyncio.subprocess.Process]] = defaultdict(list)
        self._starting: dict[str, asyncio.Task[None]] = {}

    def _id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._numbers):022d}"

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {rpc.path: self._handler(rpc) for rpc in RPCS.values()}

    def _handler(self, rpc: Rpc) -> grpclib.const.Handler:
        method = getattr(self, rpc.name, None)
        kinds = grpclib.const.Cardinality

        async def serve(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            if method is None:
                raise GRPCError(Status.UNIMPLEMENTED, rpc.name)
            if rpc.streams:
                async for message in method(request):
                    await stream.send_message(message)
            else:
                await stream.send_message(await method(request))

        return grpclib.const.Handler(
            serve, kinds.UNARY_STREAM if rpc.streams else kinds.UNARY_UNARY, rpc.request, rpc.reply
        )

    # -- declaring an app --------------------------------------------------------------------------

    async def ClientHello(self, _request: Any) -> Any:
        return api_pb2.ClientHelloResponse(image_builder_version="2025.06")

    async def EnvironmentGetOrCreate(self, _request: Any) -> Any:
        settings = api_pb2.EnvironmentSettings(image_builder_version="2025.06")
        metadata = api_pb2.EnvironmentMetadata(name="main", settings=settings)
        return api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def AuthTokenGet(self, _request: Any) -> Any:
        parts = [{"alg": "none"}, {"exp": int(time.time()) + 3600}]
        words = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        return api_pb2.AuthTokenGetResponse(token=".".join([*words, "x"]))

    async def AppCreate(self, _request: Any) -> Any:
        return api_pb2.AppCreateResponse(app_id="ap-1")

    async def MountPutFile(self, _request: Any) -> Any:
        return api_pb2.MountPutFileResponse(exists=True)

    async def MountBatchedCheckExistence(self, _request: Any) -> Any:
        return api_pb2.MountBatchedCheckExistenceResponse()

    async def MountGetOrCreate(self, _request: Any) -> Any:
        return api_pb2.MountGetOrCreateResponse(mount_id="mo-1", handle_metadata=api_pb2.MountHandleMetadata())

    async def ImageGetOrCreate(self, _request: Any) -> Any:
        return api_pb2.ImageGetOrCreateResponse(image_id="im-1", result=_SUCCESS, metadata=api_pb2.ImageMetadata())

    async def FunctionPrecreate(self, request: Any) -> Any:
        function_id = self._app_functions.setdefault(request.function_name, self._id("fu"))
        metadata = api_pb2.FunctionHandleMetadata(function_name=request.function_name)
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    async def FunctionCreate(self, request: Any) -> Any:
        ranked = request.function_data.ranked_functions
        definition = ranked[0].function if ranked else request.function
        function_id = self._app_functions.setdefault(definition.function_name, self._id("fu"))
        self._functions[function_id] = definition
        data = api_pb2.FunctionData(ranked_functions=[api_pb2.FunctionData.RankedFunction(function=definition)])
        return api_pb2.FunctionCreateResponse(
            function_id=function_id, function=definition, function_data=data, handle_metadata=self._metadata(definition)
        )

    def _metadata(self, definition: api_pb2.Function) -> api_pb2.FunctionHandleMetadata:
        return api_pb2.FunctionHandleMetadata(
            function_name=definition.function_name,
            function_type=definition.function_type,
            supported_input_formats=definition.supported_input_formats,
            supported_output_formats=definition.supported_output_formats,
        )

    async def AppPublish(self, _request: Any) -> Any:
        return api_pb2.AppPublishResponse(deployed_at=time.time())

    async def AppHeartbeat(self, _request: Any) -> Empty:
        return Empty()

    async def AppClientDisconnect(self, _request: Any) -> Empty:
        await self.stop()
        return Empty()

    async def AppGetLogs(self, _request: Any) -> Any:
        yield api_pb2.TaskLogsBatch(app_done=True)

    # -- calling -----------------------------------------------------------------------------------

    async def FunctionMap(self, request: Any) -> Any:
        call_id = self._id("fc")
        self._call_function[call_id] = request.function_id
        return api_pb2.FunctionMapResponse(
            function_call_id=call_id,
            function_call_jwt=call_id,
            pipelined_inputs=self._put(call_id, request.pipelined_inputs),
            max_inputs_outstanding=10_000,
        )

    async def FunctionPutInputs(self, request: Any) -> Any:
        return api_pb2.FunctionPutInputsResponse(inputs=self._put(request.function_call_id, request.inputs))

    def _put(self, call_id: str, items: Any) -> list[api_pb2.FunctionPutInputsResponseItem]:
        function_id = self._call_function[call_id]
        answers = []
        for item in items:
            input_id = self._id("in")
            self._of_input[input_id] = (call_id, item.idx)
            self._queues[function_id].append(
                api_pb2.FunctionGetInputsItem(input_id=input_id, input=item.input, function_call_id=call_id)
            )
            answers.append(api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=input_id, input_jwt=input_id))
            self._wake_one(function_id)
        if answers and function_id not in self._starting:
            self._starting[function_id] = asyncio.ensure_future(self._start(function_id))
        return answers

    def _wake_one(self, function_id: str) -> None:
        waiting = self._waiting[function_id]
        while waiting:
            container = waiting.popleft()
            if not container.done():  # one that has gone meanwhile has cancelled its own
                container.set_result(None)
                return

    async def FunctionFinishInputs(self, _request: Any) -> Empty:
        return Empty()

    async def FunctionGetOutputs(self, request: Any) -> Any:
        head = request.last_entry_id.partition("-")[0]
        position = int(head) if head.isdigit() else 0
        outputs, event = self._outputs[request.function_call_id], self._changed[request.function_call_id]
        if len(outputs) <= position:
            event.clear()
            try:
                async with asyncio.timeout(request.timeout):
                    await event.wait()
            except TimeoutError:
                pass
        fresh = outputs[position:]
        return api_pb2.FunctionGetOutputsResponse(
            outputs=fresh,
            idxs=[item.idx for item in fresh],
            last_entry_id=f"{position + len(fresh)}-0",
            num_unfinished_inputs=0 if fresh else 1,
        )

    # -- containers --------------------------------------------------------------------------------

    async def _start(self, function_id: str) -> None:
        definition = self._functions[function_id]
        count = definition.autoscaler_settings.max_containers or definition.concurrency_limit or 1
        for _ in range(count):
            task_id = self._id("ta")
            layout = api_pb2.AppLayout(function_ids=self._app_functions)
            for name, ident in self._app_functions.items():
                if ident in self._functions:
                    layout.objects.add(object_id=ident, function_handle_metadata=self._metadata(self._functions[ident]))
                else:
                    raise RuntimeError(f"{name} was not created")
            for ident in ("mo-1", "im-1"):
                layout.objects.add(object_id=ident)
            arguments = api_pb2.ContainerArguments(
                task_id=task_id, function_id=function_id, app_id="ap-1", function_def=definition, app_layout=layout
            )
            path = Path(self._url.removeprefix("unix://")).with_name(task_id)
            path.write_bytes(arguments.SerializeToString())
            environment = {
                **os.environ,
                "MODAL_SERVER_URL": self._url,
                "MODAL_TASK_ID": task_id,
                "MODAL_IS_REMOTE": "1",
                "MODAL_CONTAINER_ARGUMENTS_PATH": str(path),
                "PYTHONPATH": self._sources,
            }
            self._containers[function_id].append(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "modal._container_entrypoint", env=environment
                )
            )

    async def stop(self) -> None:
        """Kill every container."""
        for containers in self._containers.values():
            for container in containers:
                if container.returncode is None:
                    container.kill()
                    await container.wait()

    async def ContainerHello(self, _request: Any) -> Empty:
        return Empty()

    async def ContainerHeartbeat(self, _request: Any) -> Any:
        await asyncio.sleep(_HEARTBEAT_S)
        return api_pb2.ContainerHeartbeatResponse()

    async def FunctionGetInputs(self, request: Any) -> Any:
        queue = self._queues[request.function_id]
        if not queue:
            future = asyncio.get_running_loop().create_future()
            self._waiting[request.function_id].append(future)
            try:
                async with asyncio.timeout(_HOLD_S):
                    await future
            except TimeoutError:
                pass
        return api_pb2.FunctionGetInputsResponse(inputs=[queue.popleft()] if queue else [])

    async def FunctionPutOutputs(self, request: Any) -> Empty:
        for item in request.outputs:
            call_id, idx = self._of_input[item.input_id]
            self._outputs[call_id].append(
                api_pb2.FunctionGetOutputsItem(
                    result=item.result, idx=idx, input_id=item.input_id, data_format=item.data_format
                )
            )
            self._changed[call_id].set()
        return Empty()

    async def TaskResult(self, request: Any) -> Empty:
        sys.stderr.write(f"{request.result.exception}\n")
        return Empty()


async def _main(socket: str, sources: str) -> None:
    servicer = NullServicer(socket, sources)
    server = Server([servicer])
    await server.start(path=socket)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await stop.wait()
    await servicer.stop()
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
