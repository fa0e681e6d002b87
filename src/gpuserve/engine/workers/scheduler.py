"""The scheduler: starts and stops containers so that queued inputs get run. The engine's one shell
around the pure tables of `state`: it owns the clock, the tasks and the processes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from grpclib.server import Server

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.autoscaler import Scaling, desired_containers, scaling_of
from gpuserve.engine.state.calls import Call, CallTable, Retry, failure
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.logs import Logs
from gpuserve.engine.state.registry import Function, Registry
from gpuserve.engine.workers.launcher import ContainerSpec, Launcher
from gpuserve.engine.workers.server_port import port_of
from gpuserve.engine.workers.tasks import Pool, Task
from gpuserve.exceptions import EngineError

__all__ = ["STOP_GRACE_S", "Scheduler"]

log = logging.getLogger("gpuserve.engine")

# Source: modal 1.6.4's container says "up to 30 seconds" for what lingers after its exit hooks.
STOP_GRACE_S = 30.0
# When the engine ends, exit hooks have this long. Source: our choice.
_CLOSE_GRACE_S = 5.0
# After a time-out the container has this long to leave by itself. Source: our choice.
_TIMEOUT_GRACE_S = 5.0
_TICK_S = 0.1
_MOST_STARTS = 3
_DEFAULT_TIMEOUT_S = 300
_Status = api_pb2.GenericResult.GenericStatus


class Scheduler:
    """Pools of containers, fed from the call table."""

    def __init__(
        self,
        registry: Registry,
        calls: CallTable,
        logs: Logs,
        launcher: Launcher,
        *,
        compose: Callable[[Task, Function], ContainerSpec],
        open_door: Callable[[Task], Server],
        door_path: Callable[[Task], str],
        settled: Callable[[Call], None],
        machine_cap: int,
    ) -> None:
        """Keep the collaborators; `start` begins the clock."""
        self.registry, self.calls, self.logs = registry, calls, logs
        self._launcher, self._compose = launcher, compose
        self._open_door, self._door_path = open_door, door_path
        self._settled, self._machine_cap = settled, machine_cap
        self.pools: dict[str, Pool] = {}
        self.tasks: dict[str, Task] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._closing = False

    def start(self) -> None:
        """Begin to watch time-outs, idle containers and the minimum sizes."""
        self._background(self._watch())

    def _background(self, work: object) -> None:
        # asyncio keeps weak references only: a job without a strong one may vanish midway
        job = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._jobs.add(job)
        job.add_done_callback(self._job_done)

    def _job_done(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        if not job.cancelled() and job.exception() is not None:
            log.error("a background job of the scheduler failed", exc_info=job.exception())

    def pool(self, function_id: str) -> Pool:
        """The pool of a function, made on first use."""
        pool = self.pools.get(function_id)
        if pool is None:
            pool = self.pools[function_id] = Pool(function_id)
        return pool

    def scaling(self, function: Function) -> Scaling:
        """The scaling settings in force for *function*."""
        cap = 1 if port_of(function.definition) else self._machine_cap
        found = scaling_of(function.definition, function.overrides, self._machine_cap)
        # containers share this machine's ports: a second one could not listen on the same
        return replace(found, most=min(found.most, cap), least=min(found.least, cap))

    # -- inputs ------------------------------------------------------------------------------------

    def poke(self, function_id: str) -> None:
        """Inputs were queued, or a container left: wake the idle and start what is missing."""
        pool = self.pool(function_id)
        pool.wake(self.calls.queued(function_id))
        self._scale(pool)

    def settle(self, outcome: Retry | Call | None) -> None:
        """Act on what the call table made of a result."""
        if isinstance(outcome, Retry):
            asyncio.get_running_loop().call_later(outcome.delay_s, self._requeue, outcome.input_id)
        elif outcome is not None:
            self._settled(outcome)

    def _requeue(self, input_id: str) -> None:
        one = self.calls.requeue(input_id)
        if one is not None:
            self.poke(one.function_id)

    def fail_queued(self, function_id: str, result: api_pb2.GenericResult) -> None:
        """Answer everything that waits for a container of this function with *result*."""
        queue = self.calls.queues.get(function_id)
        for one in self.calls.queued_of([function_id]):
            self.settle(self.calls.settle(one.id, result, now=time.time(), may_retry=False))
        if queue:
            queue.clear()

    def cancel(self, call: Call, *, terminate_containers: bool) -> None:
        """End a call: queued inputs at once, running ones through their container's heartbeat."""
        call.cancelled = True
        gone = failure("the call was cancelled", _Status.GENERIC_STATUS_TERMINATED)
        for one in self.calls.unfinished_of(call):
            task = self.tasks.get(one.task_id)
            self.settle(self.calls.settle(one.id, gone, now=time.time(), may_retry=False))
            if task is None:
                continue
            task.cancelled_inputs = True
            if terminate_containers:
                self.stop(task, grace_s=0)
            else:
                task.cancels.add(one.id)
                task.cancels_changed.set()

    # -- containers --------------------------------------------------------------------------------

    def _scale(self, pool: Pool) -> None:
        function = self.registry.functions.get(pool.function_id)
        app = self.registry.apps.get(function.app_id) if function else None
        if self._closing or function is None or app is None or not app.is_live or not function.definition.function_name:
            return
        if time.monotonic() < pool.not_before:
            return
        scaling = self.scaling(function)
        alive = pool.alive()
        running = sum(len(self.calls.running.get(task.id, ())) for task in alive)
        queued = self.calls.queued(pool.function_id) + pool.server_waiters
        if function.definition.is_server:
            running = 0 if not alive else running
        wanted = desired_containers(scaling, queued=queued, running=running)
        room = scaling.most - len(pool.tasks)  # those that are leaving count: they still hold a slot
        for _ in range(min(wanted - len(alive), room)):
            task = Task(new_id("ta"), function.id, app.id, enqueued_at=time.time(), idle_since=time.monotonic())
            pool.tasks[task.id] = self.tasks[task.id] = task
            pool.started_total += 1
            pool.peak = max(pool.peak, len(pool.tasks))
            self._background(self._run(task, function))

    async def _run(self, task: Task, function: Function) -> None:
        """One container's whole life."""
        code: int | None = None
        try:
            door = self._open_door(task)
            await door.start(path=self._door_path(task))
            task.door = door
            Path(self._door_path(task)).chmod(0o600)
            spec = self._compose(task, function)
            task.started_at = time.time()

            def on_log(descriptor: int, data: bytes) -> None:
                self.logs.write(task.app_id, function.base_id or function.id, task.id, descriptor, data)

            task.container = await self._launcher.launch(spec, on_log)
            if task.stopping and not task.ready and task.stop_by == 0:
                task.container.kill()
            code = await task.container.wait()
        except (EngineError, OSError) as error:
            self.logs.say(task.app_id, f"{error}\n", function_id=function.id, task_id=task.id)
            if not task.failed_start:
                self.start_failed(task, failure(str(error), _Status.GENERIC_STATUS_INIT_FAILURE))
        finally:
            self._ended(task, code)
            if task.door is not None:
                task.door.close()
                await task.door.wait_closed()

    def _ended(self, task: Task, code: int | None) -> None:
        pool = self.pool(task.function_id)
        pool.tasks.pop(task.id, None)
        self.tasks.pop(task.id, None)
        pool.drop_waiters_of(task)
        unexpected = not (task.stopping or task.cancelled_inputs)
        _again, spent = self.calls.lose(task.id, blame=unexpected)
        ending = self._describe_end(task, code)
        for one in spent:
            self.settle(self.calls.settle(one.id, failure(ending), now=time.time(), may_retry=False))
        if not task.ready and unexpected and not task.failed_start and code is not None:
            pool.crashes_at_start += 1
            self._back_off(pool)
            if pool.crashes_at_start >= _MOST_STARTS:
                self.fail_queued(task.function_id, failure(ending, _Status.GENERIC_STATUS_INIT_FAILURE))
        elif spent:
            pool.crashes_at_start += 1
            self._back_off(pool)
        self.logs.forget_task(task.id)
        task.gone.set()
        if not self._closing:
            self.poke(task.function_id)

    def _describe_end(self, task: Task, code: int | None) -> str:
        if code is None:
            return "the container could not be started"
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        if code == -9:  # noqa: PLR2004 (SIGKILL)
            how += " (out of memory, or killed from outside)"
        lines = self.logs.tail(task.app_id, task.id)
        last = f" Its last log lines:\n{lines}" if lines else " It logged nothing."
        return f"Container {task.id} {how} while it ran this input.{last}"

    def _back_off(self, pool: Pool) -> None:
        delay = min(0.1 * 2**pool.crashes_at_start, 30.0)
        pool.not_before = time.monotonic() + delay
        asyncio.get_running_loop().call_later(delay + 0.01, self.poke, pool.function_id)

    def start_failed(self, task: Task, result: api_pb2.GenericResult) -> None:
        """The user's start-up code failed: everyone who waits gets that error, and starts back off."""
        task.failed_start = True
        pool = self.pool(task.function_id)
        pool.last_failure = result.exception
        pool.crashes_at_start += 1
        self.fail_queued(task.function_id, result)
        self._back_off(pool)

    def became_ready(self, task: Task) -> None:
        """The container asked for its first input."""
        if not task.ready:
            task.ready, task.ready_at = True, time.time()
            self.pool(task.function_id).crashes_at_start = 0

    def stop(self, task: Task, *, grace_s: float = STOP_GRACE_S, interrupt: bool = False) -> None:
        """Let a container leave: exit hooks run; it is killed when *grace_s* has passed."""
        deadline = time.monotonic() + grace_s
        task.stop_by = min(task.stop_by, deadline) if task.stopping else deadline
        task.stopping = True
        self.pool(task.function_id).drop_waiters_of(task)
        if task.container is None:
            return
        function = self.registry.functions.get(task.function_id)
        if grace_s <= 0:
            task.container.kill()
        elif function is not None and function.definition.is_server:
            task.container.terminate()
        elif interrupt:
            task.container.interrupt()

    async def stop_app(self, app_id: str, *, grace_s: float = STOP_GRACE_S) -> None:
        """End every input and container of an app, and wait until they are gone."""
        functions = [function.id for function in self.registry.functions_of(app_id)]
        gone = failure("the app was stopped", _Status.GENERIC_STATUS_TERMINATED)
        for one in self.calls.queued_of(functions):
            self.settle(self.calls.settle(one.id, gone, now=time.time(), may_retry=False))
        leaving = [task for task in self.tasks.values() if task.app_id == app_id]
        for task in leaving:
            running = list(self.calls.running.get(task.id, ()))
            for input_id in running:
                self.settle(self.calls.settle(input_id, gone, now=time.time(), may_retry=False))
            self.stop(task, grace_s=grace_s, interrupt=bool(running) or not task.ready)
        for task in leaving:
            await task.gone.wait()
        for function_id in functions:
            self.pools.pop(function_id, None)

    # -- the clock ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)  # noqa: TID251 (the scheduler's own clock)
            now = time.monotonic()
            for task in list(self.tasks.values()):
                self._check(task, now)
            for pool in list(self.pools.values()):
                self._scale(pool)
                self._scale_down(pool, now)

    def _check(self, task: Task, now: float) -> None:
        if task.stopping:
            if task.stop_by and now > task.stop_by and task.container is not None:
                task.container.kill()
            return
        function = self.registry.functions.get(task.function_id)
        if function is None:
            self.stop(task, grace_s=_TIMEOUT_GRACE_S)
            return
        definition = function.definition
        wall = time.time()
        if not task.ready:
            allowed = definition.startup_timeout_secs or definition.timeout_secs or _DEFAULT_TIMEOUT_S
            if task.started_at and wall - task.started_at > allowed:
                message = f"Container {task.id} was not ready within its start-up time-out of {allowed} s"
                tail = self.logs.tail(task.app_id, task.id)
                result = failure(f"{message}. Its last log lines:\n{tail}", _Status.GENERIC_STATUS_INIT_FAILURE)
                self.start_failed(task, result)
                self.stop(task, grace_s=0)
            return
        timeout_s = definition.timeout_secs or _DEFAULT_TIMEOUT_S
        running = self.calls.running.get(task.id, set())
        if running:
            task.idle_since = now
        for input_id in list(running):
            if wall - self.calls.inputs[input_id].delivered_at > timeout_s:
                self._expire(task, input_id, timeout_s, concurrent=definition.max_concurrent_inputs > 1)

    def _expire(self, task: Task, input_id: str, timeout_s: int, *, concurrent: bool) -> None:
        result = failure(
            f"Input {input_id} ran longer than its timeout of {timeout_s} s", _Status.GENERIC_STATUS_TIMEOUT
        )
        self.settle(self.calls.settle(input_id, result, now=time.time()))
        task.cancelled_inputs = True
        if concurrent:
            task.cancels.add(input_id)
            task.cancels_changed.set()
        else:
            self.stop(task, grace_s=_TIMEOUT_GRACE_S, interrupt=True)

    def _scale_down(self, pool: Pool, now: float) -> None:
        function = self.registry.functions.get(pool.function_id)
        if function is None or not pool.tasks:
            return
        scaling = self.scaling(function)
        alive = pool.alive()
        running = {task.id: len(self.calls.running.get(task.id, ())) for task in alive}
        queued = self.calls.queued(pool.function_id) + pool.server_waiters
        wanted = desired_containers(scaling, queued=queued, running=sum(running.values()))
        spare = len(alive) - wanted
        idle = sorted((task for task in alive if task.ready and not running[task.id]), key=lambda task: task.idle_since)
        for task in idle:
            if spare <= 0:
                return
            if now - task.idle_since >= scaling.scaledown_window_s:
                self.stop(task)
                spare -= 1

    async def close(self) -> None:
        """Let every container leave, with its exit hooks, or kill it; then stop the clock."""
        self._closing = True
        leaving = list(self.tasks.values())
        for task in leaving:
            busy = bool(self.calls.running.get(task.id)) or not task.ready
            self.stop(task, grace_s=_CLOSE_GRACE_S, interrupt=busy)
        for task in leaving:
            if task.container is not None:
                await task.gone.wait()
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
