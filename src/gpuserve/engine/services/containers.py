"""What containers ask for: inputs, cancellations, a place for their results; and their lists."""

from __future__ import annotations

import asyncio
import time

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.calls import CallTable, Input
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.workers.scheduler import STOP_GRACE_S, Scheduler
from gpuserve.engine.workers.tasks import Task

__all__ = ["ContainerService"]

# A request for inputs is answered empty after this long, so that a lost container is noticed.
_HOLD_INPUTS_S = 30.0
# Source: modal 1.6.4 gives its heartbeat up after 15.1 s and sleeps out the rest of 15 s.
_HOLD_HEARTBEAT_S = 14.5


class ContainerService:
    """The RPCs of containers; each acts for the task whose own socket the call came over."""

    def __init__(self, registry: Registry, calls: CallTable, scheduler: Scheduler) -> None:
        """Keep the tables."""
        self._registry, self._calls, self._scheduler = registry, calls, scheduler

    def _task(self, caller: Caller) -> Task:
        task = self._scheduler.tasks.get(caller.task_id)
        if task is None:
            refuse(Status.PERMISSION_DENIED, "only a running container may call this")
        return task

    async def ContainerHello(self, _request: Empty, caller: Caller) -> Empty:
        """The container's runtime is up."""
        self._task(caller)
        return Empty()

    async def FunctionGetInputs(
        self, request: api_pb2.FunctionGetInputsRequest, caller: Caller
    ) -> api_pb2.FunctionGetInputsResponse:
        """Hand the container its next inputs, or tell it to leave; a long poll."""
        task = self._task(caller)
        if request.function_id != task.function_id:
            refuse(Status.PERMISSION_DENIED, "a container may only fetch inputs of its own function")
        self._scheduler.became_ready(task)
        most = max(1, request.batch_max_size)
        deadline = time.monotonic() + _HOLD_INPUTS_S
        while True:
            if task.stopping or task.gone.is_set():  # one that has ended would take inputs with it
                return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])
            taken = self._take(task, most)
            if taken:
                if len(taken) < most and request.batch_linger_ms:
                    await self._linger(task, taken, most, request.batch_linger_ms / 1000)
                if taken:
                    return api_pb2.FunctionGetInputsResponse(inputs=[self._item(one) for one in taken])
                continue
            if not await self._wait_for_input(task, deadline - time.monotonic()):
                return api_pb2.FunctionGetInputsResponse()

    def _take(self, task: Task, most: int) -> list[Input]:
        return self._calls.take(task.function_id, task.id, most, time.monotonic(), task.ending)

    async def _wait_for_input(self, task: Task, timeout_s: float) -> bool:
        """Wait until this container is woken; false when *timeout_s* has passed."""
        pool = self._scheduler.pool(task.function_id)
        future = asyncio.get_running_loop().create_future()
        entry = (task, future)
        pool.waiters.append(entry)
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await future
        except TimeoutError:
            return False
        finally:
            if entry in pool.waiters:
                pool.waiters.remove(entry)
        return True

    async def _linger(self, task: Task, taken: list[Input], most: int, wait_s: float) -> None:
        """Fill the batch *taken* up, for at most *wait_s* after its first input; drop what ended meanwhile."""
        deadline = time.monotonic() + wait_s
        try:
            while len(taken) < most and not task.stopping and not task.gone.is_set():
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not await self._wait_for_input(task, remaining):
                    break
                taken += self._take(task, most - len(taken))
        except asyncio.CancelledError:
            for one in [one for one in taken if one.task_id == task.id]:  # nobody is there to be handed them
                self._calls.requeue(one.id, front=True)
            self._scheduler.poke(task.function_id)
            raise
        delivered_at = time.monotonic()  # a batch is one run: its inputs run out of time together
        held = self._calls.running.get(task.id, {})
        taken[:] = [one for one in taken if one.id in held]
        for one in taken:
            one.delivered_at = delivered_at

    def _item(self, one: Input) -> api_pb2.FunctionGetInputsItem:
        call = self._calls.calls[one.call_id]
        return api_pb2.FunctionGetInputsItem(
            input_id=one.id,
            input=one.payload,
            function_call_id=one.call_id,
            function_call_invocation_type=call.invocation,  # type: ignore[arg-type]
            retry_count=one.deliveries - 1,
            function_map_idx=one.idx,
        )

    async def FunctionPutOutputs(self, request: api_pb2.FunctionPutOutputsRequest, caller: Caller) -> Empty:
        """Take in results; those of inputs that are no longer this container's are dropped."""
        task = self._scheduler.tasks.get(caller.task_id)
        broken_off = api_pb2.GenericResult.GENERIC_STATUS_TERMINATED
        for item in request.outputs:
            asked_for = task is not None and item.input_id in task.ending
            if item.result.status == broken_off and not asked_for:
                self._calls.hand_back(item.input_id, caller.task_id)
                item.result.exception = item.result.exception or "its container broke the input off, unasked"
            outcome: object = self._calls.settle(
                item.input_id,
                item.result,
                now=time.monotonic(),
                at=time.time(),
                task_id=caller.task_id,
                delivery=item.retry_count,
                data_format=item.data_format,
                started_at=item.input_started_at,
            )
            self._scheduler.settle(outcome)  # type: ignore[arg-type]
            if task is not None:
                self._scheduler.let_go(task, item.input_id)
        return Empty()

    async def ContainerHeartbeat(
        self, _request: api_pb2.ContainerHeartbeatRequest, caller: Caller
    ) -> api_pb2.ContainerHeartbeatResponse:
        """Wait for cancellations, and hand over all of them at once."""
        task = self._task(caller)
        if not task.cancels:
            task.cancels_changed.clear()
            try:
                async with asyncio.timeout(_HOLD_HEARTBEAT_S):
                    await task.cancels_changed.wait()
            except TimeoutError:
                return api_pb2.ContainerHeartbeatResponse()
        ids, task.cancels = sorted(task.cancels), set()
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=api_pb2.CancelInputEvent(input_ids=ids))

    async def TaskResult(self, request: api_pb2.TaskResultRequest, caller: Caller) -> Empty:
        """The container's start-up code failed: whoever waits gets that error."""
        self._scheduler.start_failed(self._task(caller), request.result)
        return Empty()

    async def ContainerServerLifecycleReady(self, _request: object, caller: Caller) -> Empty:
        """A server's enter hooks have returned (its port may still be closed)."""
        self._scheduler.became_ready(self._task(caller))
        return Empty()

    async def ContainerStop(
        self, request: api_pb2.ContainerStopRequest, caller: Caller
    ) -> api_pb2.ContainerStopResponse:
        """Let one container finish what it runs and leave."""
        if caller.is_container and request.task_id != caller.task_id:
            refuse(Status.PERMISSION_DENIED, "a container may only stop itself")
        task = self._scheduler.tasks.get(request.task_id)
        if task is not None:
            if not caller.is_container and not request.graceful:
                again, _spent = self._calls.lose(task.id, blame=False)
                task.ending.update({one.id: time.monotonic() + STOP_GRACE_S for one in again})
                self._scheduler.stop(task, interrupt=True)
                self._scheduler.poke(task.function_id)
            else:
                self._scheduler.stop(task)
        return api_pb2.ContainerStopResponse()

    async def FunctionGetDynamicConcurrency(
        self, request: api_pb2.FunctionGetDynamicConcurrencyRequest, caller: Caller
    ) -> api_pb2.FunctionGetDynamicConcurrencyResponse:
        """Allow the full concurrency while inputs wait and no container can be added; else the target."""
        if caller.is_container and request.function_id != self._task(caller).function_id:
            refuse(Status.PERMISSION_DENIED, "a container may only ask for the concurrency of its own function")
        function = self._registry.functions.get(request.function_id)
        crowded = False
        if function is not None:
            crowded = self._calls.queued(function.id) > 0 and self._scheduler.is_full(function)
        wanted = request.max_concurrency if crowded else request.target_concurrency
        return api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=wanted)

    async def TaskList(self, request: api_pb2.TaskListRequest, _caller: Caller) -> api_pb2.TaskListResponse:
        """The containers that run now."""
        found = []
        for task in self._scheduler.tasks.values():
            app = self._registry.apps[task.app_id]
            if request.app_id and task.app_id != request.app_id:
                continue
            if request.environment_name and app.environment != request.environment_name:
                continue
            found.append(
                api_pb2.TaskStats(
                    task_id=task.id,
                    app_id=task.app_id,
                    app_description=app.description or app.name,
                    started_at=task.started_at,
                    enqueued_at=task.enqueued_at,
                )
            )
        return api_pb2.TaskListResponse(tasks=found)

    async def TaskGetInfo(self, request: api_pb2.TaskGetInfoRequest, _caller: Caller) -> api_pb2.TaskGetInfoResponse:
        """One running container."""
        task = self._scheduler.tasks.get(request.task_id)
        if task is None:
            refuse(Status.NOT_FOUND, f"container {request.task_id} is not running")
        info = api_pb2.TaskInfo(id=task.id, started_at=task.started_at, enqueued_at=task.enqueued_at)
        return api_pb2.TaskGetInfoResponse(app_id=task.app_id, info=info)

    async def TaskCurrentInputs(self, _request: Empty, caller: Caller) -> api_pb2.TaskCurrentInputsResponse:
        """The inputs that the calling container runs."""
        running = self._calls.running.get(self._task(caller).id, ())
        return api_pb2.TaskCurrentInputsResponse(input_ids=sorted(running))
