"""Calls as a caller sees them: begin, add inputs, wait for outputs, cancel."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.calls import MOST_CRASHES, Call, CallTable, Input, InputStatus
from gpuserve.engine.state.records import Function
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.state.streams import Streams
from gpuserve.engine.workers.scheduler import Scheduler

__all__ = ["CallService", "Completions"]

# Source: modal 1.6.4's own long poll is 55 s, and it allows for that and a little more.
_LONGEST_POLL_S = 60.0
# How long the outputs of a call that was read to its end are kept for a reader that lost the answer,
# and what they only name for a reader that is slow to fetch it. Source: our choice.
_READ_CALL_LIFE_S = 60.0
_BLOB_LIFE_S = 600.0
# A map may have this many inputs without output before its client is told to wait.
_MOST_OUTSTANDING = 10_000
# Positional and named arguments, none of either: ``[[], {}]`` in CBOR.
_NO_ARGUMENTS = b"\x82\x80\xa0"


class Completions:
    """Wakes those who wait for a call when one of its inputs is done."""

    def __init__(self) -> None:
        """Start with nobody waiting."""
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def notify(self, call_id: str) -> None:
        """Something about the call has changed."""
        for future in self._waiting.pop(call_id, ()):
            if not future.done():
                future.set_result(None)

    async def wait(self, call_id: str, timeout_s: float) -> None:
        """Return at the next change, or when *timeout_s* has passed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[call_id].add(future)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            pass
        finally:
            waiting = self._waiting.get(call_id)
            if waiting is not None:
                waiting.discard(future)
                if not waiting:
                    del self._waiting[call_id]


class CallService:
    """The RPCs of callers, clients and containers alike."""

    def __init__(
        self,
        registry: Registry,
        calls: CallTable,
        scheduler: Scheduler,
        completions: Completions,
        streams: Streams,
        drop_blobs: Callable[[list[str]], None],
    ) -> None:
        """Keep the tables; `settled` is what the scheduler calls for each finished input."""
        self._registry, self._calls, self._scheduler = registry, calls, scheduler
        self._completions, self._streams, self._drop_blobs = completions, streams, drop_blobs

    def _function(self, function_id: str, *, in_force: bool) -> Function:
        """The function, if it may be given inputs; a call that began may get more after a removal."""
        function = self._registry.functions.get(function_id)
        if function is None or not function.definition.function_name:
            refuse(Status.NOT_FOUND, f"function {function_id} does not exist; its app may have been stopped")
        app = self._registry.apps.get(function.app_id)
        if app is None or not app.is_live:
            refuse(Status.NOT_FOUND, f"the app of function {function_id} is stopped")
        if function.retired and in_force:
            refuse(
                Status.NOT_FOUND,
                f"version {app.version} of app '{app.name or app.description}' has no function '{function.name}'; "
                "look it up again, or ask for an older version",
            )
        return function

    def _call(self, call_id: str) -> Call:
        call = self._calls.calls.get(call_id)
        if call is None:
            refuse(Status.NOT_FOUND, f"function call {call_id} does not exist, or its outputs were read and dropped")
        return call

    def begin(
        self,
        function: Function,
        *,
        kind: int,
        invocation: int,
        parent_input_id: str = "",
        opened_by: str = "",
        most_crashes: int = MOST_CRASHES,
    ) -> Call:
        """Open a call of *function*; *most_crashes* says how often an input whose container died is run again."""
        return self._calls.open(
            function.id,
            kind=kind,
            invocation=invocation,
            parent_input_id=parent_input_id,
            now=time.time(),
            retry_policy=function.definition.retry_policy,
            opened_by=opened_by,
            most_crashes=most_crashes,
        )

    def start_scheduled(self, functions: Sequence[Function]) -> None:
        """Queue an input without arguments for each, which nobody waits for; it fails and is retried as any other.

        All are queued before the first container is begun for one, which takes longer.
        """
        for function in functions:
            call = self.begin(
                function,
                kind=api_pb2.FUNCTION_CALL_TYPE_UNARY,
                invocation=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
            )
            payload = api_pb2.FunctionInput(args=_NO_ARGUMENTS, data_format=api_pb2.DATA_FORMAT_CBOR)
            self._calls.add(call, 0, payload)
        for function in functions:
            self._scheduler.poke(function.id)

    def _own_call(self, call_id: str, caller: Caller) -> Call:
        """The call, if *caller* may add to it: clients to any, a container to those that it began."""
        call = self._call(call_id)
        if caller.is_container and call.opened_by != caller.task_id:
            refuse(Status.PERMISSION_DENIED, "a container may only add inputs to a call that it began")
        return call

    def _parent(self, input_id: str, caller: Caller) -> str:
        """The input that a call is made for; a container may only name one that it was given."""
        parent = self._calls.inputs.get(input_id)
        mine = parent is not None and parent.task_id == caller.task_id
        return input_id if mine or not caller.is_container else ""

    def _put(self, call: Call, items: object) -> list[api_pb2.FunctionPutInputsResponseItem]:
        added: list[Input] = [self._calls.add(call, item.idx, item.input) for item in items]  # type: ignore[attr-defined]
        self._scheduler.poke(call.function_id)
        return [api_pb2.FunctionPutInputsResponseItem(idx=one.idx, input_id=one.id, input_jwt=one.id) for one in added]

    async def FunctionMap(self, request: api_pb2.FunctionMapRequest, caller: Caller) -> api_pb2.FunctionMapResponse:
        """Begin a call, with its first inputs where the client has them at hand."""
        function = self._function(request.function_id, in_force=True)
        call = self.begin(
            function,
            kind=request.function_call_type,
            invocation=request.function_call_invocation_type,
            parent_input_id=self._parent(request.parent_input_id, caller),
            opened_by=caller.task_id,
        )
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id,
            function_call_jwt=call.id,
            pipelined_inputs=self._put(call, request.pipelined_inputs),
            retry_policy=function.definition.retry_policy,
            sync_client_retries_enabled=False,
            max_inputs_outstanding=_MOST_OUTSTANDING,
        )

    async def FunctionPutInputs(
        self, request: api_pb2.FunctionPutInputsRequest, caller: Caller
    ) -> api_pb2.FunctionPutInputsResponse:
        """Add inputs to a call."""
        call = self._own_call(request.function_call_id, caller)
        self._function(call.function_id, in_force=False)
        if call.cancelled:
            refuse(Status.FAILED_PRECONDITION, f"function call {call.id} was cancelled")
        return api_pb2.FunctionPutInputsResponse(inputs=self._put(call, request.inputs))

    async def FunctionFinishInputs(self, request: api_pb2.FunctionFinishInputsRequest, caller: Caller) -> Empty:
        """No more inputs will come; nothing to do, since outputs are counted as they come."""
        self._own_call(request.function_call_id, caller)
        return Empty()

    def settled(self, call: Call) -> None:
        """One more input of *call* is done."""
        self._completions.notify(call.id)
        if not call.unfinished:
            self._streams.finish(call.id)
            if call.cleared:
                self._forget_soon(call.id)

    async def FunctionGetOutputs(
        self, request: api_pb2.FunctionGetOutputsRequest, caller: Caller
    ) -> api_pb2.FunctionGetOutputsResponse:
        """Wait for outputs after ``last_entry_id``; a long poll."""
        if self._calls.is_expired(request.function_call_id):
            return api_pb2.FunctionGetOutputsResponse(last_entry_id="0-0")
        call = self._call(request.function_call_id)
        by_index = request.HasField("start_idx")
        may_clear = not caller.is_container or call.opened_by == caller.task_id
        if request.clear_on_success and may_clear and not by_index:
            # the farewell of a map: its client has all the outputs that it wants
            self._clear(call)
            return api_pb2.FunctionGetOutputsResponse(last_entry_id="0-0", num_unfinished_inputs=call.unfinished)
        deadline = time.monotonic() + max(0.0, min(request.timeout, _LONGEST_POLL_S))
        position = _position(request.last_entry_id)
        if not by_index and may_clear and call.invocation == api_pb2.FUNCTION_CALL_INVOCATION_TYPE_SYNC:
            self._calls.release(call, position)
        while True:
            outputs = self._select(call, request, position)
            remaining = deadline - time.monotonic()
            if outputs or remaining <= 0:
                break
            await self._completions.wait(call.id, remaining)
        if request.clear_on_success and may_clear and not call.unfinished:
            self._clear(call)
        return api_pb2.FunctionGetOutputsResponse(
            outputs=outputs,
            idxs=[item.idx for item in outputs],
            last_entry_id="0-0" if by_index else f"{position + len(outputs)}-0",
            num_unfinished_inputs=call.unfinished,
        )

    def _clear(self, call: Call) -> None:
        """The caller has what it wants of *call*: drop it, a while after its end."""
        if not call.cleared and not call.unfinished:
            self._forget_soon(call.id)
        call.cleared = True

    def _forget_soon(self, call_id: str) -> None:
        asyncio.get_running_loop().call_later(_READ_CALL_LIFE_S, self.forget, call_id)

    def forget(self, call_id: str) -> None:
        """Drop a finished call with its streams and, when whoever fetches them is done, its blobs."""
        call = self._calls.calls.get(call_id)
        if call is not None and not call.unfinished:
            self.drop_later([*self._calls.forget(call_id), *self._streams.drop(call_id)])

    def drop_later(self, blob_ids: list[str]) -> None:
        """Free blobs, once whoever fetches them is done."""
        if blob_ids:
            asyncio.get_running_loop().call_later(_BLOB_LIFE_S, self._drop_blobs, blob_ids)

    def expire(self) -> None:
        """Drop the finished calls that are too old, or the oldest where there are too many."""
        for call_id in self._calls.outdated(time.monotonic()):
            self._drop_blobs([*self._calls.expire(call_id), *self._streams.drop(call_id)])

    def _select(
        self, call: Call, request: api_pb2.FunctionGetOutputsRequest, position: int
    ) -> list[api_pb2.FunctionGetOutputsItem]:
        if request.HasField("start_idx"):
            last = request.end_idx if request.HasField("end_idx") else request.start_idx
            if last - request.start_idx > len(call.outputs):
                return [item for item in call.outputs if request.start_idx <= item.idx <= last]
            wanted = map(call.by_idx.get, range(request.start_idx, last + 1))
            return [item for item in wanted if item is not None]
        most = request.max_values if request.max_values > 0 else None
        return call.outputs[position:][:most]

    def _may_end_containers(self, call: Call, caller: Caller) -> bool:
        """Whether *caller* may end what runs *call*: a container that ends takes others' inputs with it."""
        task, function = self._scheduler.tasks.get(caller.task_id), self._registry.functions.get(call.function_id)
        of_own_app = task is not None and function is not None and task.app_id == function.app_id
        return not caller.is_container or of_own_app or call.opened_by == caller.task_id

    async def FunctionCallCancel(self, request: api_pb2.FunctionCallCancelRequest, caller: Caller) -> Empty:
        """End a call; its waiting inputs are answered at once. Whoever knows a call's id may, as on Modal."""
        call = self._call(request.function_call_id)
        if request.terminate_containers and not self._may_end_containers(call, caller):
            refuse(
                Status.PERMISSION_DENIED,
                "a container may end containers only of its own app, or for a call that it began; "
                "cancel without terminate_containers, or from a client",
            )
        self._scheduler.cancel(call, terminate_containers=request.terminate_containers)
        return Empty()

    async def FunctionCallFromId(
        self, request: api_pb2.FunctionCallFromIdRequest, _caller: Caller
    ) -> api_pb2.FunctionCallFromIdResponse:
        """Look a call up by its id."""
        call = self._call(request.function_call_id)
        function = self._registry.functions.get(call.function_id)
        metadata = api_pb2.FunctionCallHandleMetadata(
            function_id=call.function_id, app_id=function.app_id if function else ""
        )
        return api_pb2.FunctionCallFromIdResponse(
            function_call_id=call.id, num_inputs=len(call.inputs), metadata=metadata
        )

    async def FunctionCallGetInfo(
        self, request: api_pb2.FunctionCallGetInfoRequest, _caller: Caller
    ) -> api_pb2.FunctionCallGetInfoResponse:
        """The state of a call in figures."""
        return api_pb2.FunctionCallGetInfoResponse(info=self._info(self._call(request.function_call_id)))

    async def FunctionCallList(
        self, request: api_pb2.FunctionCallListRequest, _caller: Caller
    ) -> api_pb2.FunctionCallListResponse:
        """The calls of one function, newest first."""
        mine = [call for call in self._calls.calls.values() if call.function_id == request.function_id]
        return api_pb2.FunctionCallListResponse(function_calls=[self._info(call) for call in reversed(mine)])

    def _info(self, call: Call) -> api_pb2.FunctionCallInfo:
        by_status: defaultdict[int, int] = defaultdict(int)
        for item in call.outputs:
            by_status[item.result.status] += 1
        status = api_pb2.GenericResult.GenericStatus
        done = {status.GENERIC_STATUS_SUCCESS, status.GENERIC_STATUS_TERMINATED, status.GENERIC_STATUS_TIMEOUT}

        def category(total: int) -> api_pb2.InputCategoryInfo:
            return api_pb2.InputCategoryInfo(total=total)

        return api_pb2.FunctionCallInfo(
            function_call_id=call.id,
            created_at=call.created_at,
            total_inputs=len(call.inputs),
            pending_inputs=category(call.unfinished),
            succeeded_inputs=category(by_status[status.GENERIC_STATUS_SUCCESS]),
            cancelled_inputs=category(by_status[status.GENERIC_STATUS_TERMINATED]),
            timeout_inputs=category(by_status[status.GENERIC_STATUS_TIMEOUT]),
            failed_inputs=category(sum(count for kind, count in by_status.items() if kind not in done)),
        )

    async def FunctionGetCallGraph(
        self, request: api_pb2.FunctionGetCallGraphRequest, _caller: Caller
    ) -> api_pb2.FunctionGetCallGraphResponse:
        """The call, and the calls that its inputs made in turn."""
        root = self._call(request.function_call_id)
        children: defaultdict[str, list[Call]] = defaultdict(list)
        for other in self._calls.calls.values():
            parent = self._calls.inputs.get(other.parent_input_id)
            if parent is not None:
                children[parent.call_id].append(other)
        calls = [root]
        for call in calls:  # grows as it goes; an input is older than the calls that it makes
            calls.extend(children[call.id])
        reply = api_pb2.FunctionGetCallGraphResponse()
        for call in calls:
            self._add_to_graph(reply, call)
        return reply

    def _add_to_graph(self, reply: api_pb2.FunctionGetCallGraphResponse, call: Call) -> None:
        function = self._registry.functions.get(call.function_id)
        name = function.name if function else ""
        reply.function_calls.add(
            function_call_id=call.id,
            parent_input_id=call.parent_input_id,
            function_name=name,
            module_name=function.definition.module_name if function else "",
        )
        statuses = {item.input_id: item.result.status for item in call.outputs}
        for input_id in call.inputs.values():
            one = self._calls.inputs[input_id]
            line = reply.inputs.add(input_id=input_id, function_call_id=call.id, task_id=one.task_id)
            if one.status is InputStatus.DONE:
                line.status = statuses[input_id]

    async def FunctionGetCurrentStats(
        self, request: api_pb2.FunctionGetCurrentStatsRequest, _caller: Caller
    ) -> api_pb2.FunctionStats:
        """Backlog and containers of a function."""
        pool = self._scheduler.pools.get(request.function_id)
        tasks = pool.tasks if pool is not None else {}
        running = sum(len(self._calls.running.get(task_id, ())) for task_id in tasks)
        return api_pb2.FunctionStats(
            backlog=self._calls.queued(request.function_id),
            num_total_tasks=len(tasks),
            num_running_inputs=running,
        )


def _position(entry_id: str) -> int:
    head = entry_id.partition("-")[0]
    return int(head) if head.isdigit() else 0
