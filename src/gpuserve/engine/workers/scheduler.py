"""The scheduler: starts and stops containers so that queued inputs get run. The engine's one shell
around the pure tables of `state`: it owns the clock, the tasks and the processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

from grpclib.server import Server

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.autoscaler import Scaling, desired_containers, scaling_of
from gpuserve.engine.state.calls import Call, CallTable, Input, Retry, failure
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.logs import Logs, Source
from gpuserve.engine.state.records import Function
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.state.variants import needs_parameters
from gpuserve.engine.workers.deadlines import INTERRUPT_EVERY_S, STOP_GRACE_S, Deadlines
from gpuserve.engine.workers.launcher import ContainerSpec, Launcher
from gpuserve.engine.workers.server_port import port_of
from gpuserve.engine.workers.tasks import Pool, Task
from gpuserve.exceptions import EngineError

__all__ = ["STOP_GRACE_S", "Scheduler"]

log = logging.getLogger("gpuserve.engine")

# When the engine ends, exit hooks have this long. Source: our choice.
_CLOSE_GRACE_S = 5.0
_TICK_S = 0.1
# After a tick this late the engine itself stood still: what was sent meanwhile is read before anything is overdue.
_LATE_S = 1.0
_MOST_STARTS = 3
# How long code may take to clean up after a cancellation before its container is killed. Source: our choice.
_CANCEL_GRACE_S = 30.0
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
        compose: Callable[[Task, Function], Awaitable[ContainerSpec]],
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
        self._deadlines = Deadlines(
            calls, self.stop, self.start_failed, self._expired, lambda task: logs.tail(task.app_id, task.id)
        )

    def start(self) -> None:
        """Begin to watch time-outs, idle containers and the minimum sizes, those of deployed apps first."""
        self._background(self._watch())
        for function_id in list(self.registry.functions):
            self.poke(function_id)

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
        bare = not function.base_id and needs_parameters(function.definition)
        past = function.retired or function.pinned > 0  # an older version keeps nothing warm
        found = scaling_of(function.definition, function.overrides, self._machine_cap, keeps_none=past or bare)
        if not port_of(function.definition):
            return found
        # containers share this machine's ports: a second one could not listen on the same
        return replace(found, most=1, least=min(found.least, 1), yields=False)

    # -- inputs ------------------------------------------------------------------------------------

    def poke(self, function_id: str) -> None:
        """Inputs were queued, or a container left: wake the idle and start what is missing."""
        pool = self.pool(function_id)
        # one that must run alone is not for whoever asked last: all look whether it is for them
        pool.wake(len(pool.waiters) if self.calls.suspects(function_id) else self.calls.queued(function_id))
        self._scale(pool)

    @contextlib.contextmanager
    def waiting(self, task_id: str) -> Iterator[None]:
        """A container waits for what others do; *task_id* is empty for a client."""
        task = self.tasks.get(task_id)
        if task is None:
            yield
            return
        task.waits += 1
        self._scale(self.pool(task.function_id))
        try:
            yield
        finally:
            task.waits -= 1

    def settle(self, outcome: Retry | Call | None) -> None:
        """Act on what the call table made of a result."""
        if isinstance(outcome, Retry):
            asyncio.get_running_loop().call_later(outcome.delay_s, self._requeue, outcome.input_id)
        elif outcome is not None:
            self._settled(outcome)

    def finish(self, one: Input, result: api_pb2.GenericResult, *, may_retry: bool = False) -> None:
        """Give an input a result that comes from the engine."""
        self.settle(
            self.calls.settle(one.id, result, now=time.monotonic(), at=time.time(), may_retry=may_retry),
        )

    def _expired(self, one: Input, result: api_pb2.GenericResult) -> None:
        self.finish(one, result, may_retry=True)

    def _requeue(self, input_id: str) -> None:
        one = self.calls.requeue(input_id)
        if one is not None:
            self.poke(one.function_id)

    def fail_queued(self, function_id: str, result: api_pb2.GenericResult) -> None:
        """Answer everything that waits for a container of this function with *result*."""
        for one in self.calls.queued_of([function_id]):
            self.finish(one, result)

    def cancel(self, call: Call, *, terminate_containers: bool) -> None:
        """End a call: queued inputs at once, running ones through their container's heartbeat."""
        call.cancelled = True
        gone = failure("the call was cancelled", _Status.GENERIC_STATUS_TERMINATED)
        for one in self.calls.unfinished_of(call):
            task = self.tasks.get(one.task_id)
            self.finish(one, gone)
            if task is None:
                continue
            function = self.registry.functions.get(task.function_id)
            is_batch = function is not None and function.definition.batch_max_size > 1
            if terminate_containers:
                self.stop(task, grace_s=0)
            elif not (is_batch and self.calls.running.get(task.id)):  # a batch goes on for its other inputs
                task.ending[one.id] = time.monotonic() + _CANCEL_GRACE_S
                task.ask_to_cancel(one.id)

    def let_go(self, task: Task, input_id: str) -> None:
        """The container has ended an input, whatever of it."""
        task.idle_since = time.monotonic()
        if task.ending.pop(input_id, None) is not None or self.calls.queued(task.function_id):
            self.poke(task.function_id)

    # -- containers --------------------------------------------------------------------------------

    def _wanted(self, pool: Pool, scaling: Scaling) -> tuple[int, int]:
        """How many containers the load of a pool asks for, and the most that it may have."""
        running, waiting = self.calls.running, 0
        for task in pool.tasks.values():
            waiting += min(task.waits, len(running.get(task.id, ())))
        wanted = desired_containers(
            scaling,
            queued=self.calls.queued(pool.function_id) + pool.server_waiters,
            running=sum(len(running.get(task.id, ())) + len(task.ending) for task in pool.alive()),
            alone=self.calls.suspects(pool.function_id),
            waiting=waiting,
        )
        return wanted, scaling.cap(waiting)

    def is_full(self, function: Function) -> bool:
        """Whether no container can be added to a pool."""
        pool = self.pool(function.id)
        return len(pool.tasks) >= self._wanted(pool, self.scaling(function))[1]

    def _scale(self, pool: Pool) -> None:
        function = self.registry.functions.get(pool.function_id)
        app = self.registry.apps.get(function.app_id) if function else None
        if self._closing or function is None or app is None or not app.is_live or not function.definition.function_name:
            return
        if time.monotonic() < pool.not_before:
            return
        wanted, most = self._wanted(pool, self.scaling(function))
        room = most - len(pool.tasks)  # those that are leaving count: they still hold a slot
        for _ in range(min(wanted - len(pool.alive()), room)):
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
            if task.is_leaving():
                return
            spec = await self._compose(task, function)
            task.started_at, task.began = time.time(), time.monotonic()

            def on_log(descriptor: int, data: bytes) -> None:
                self.logs.write(task.app_id, self._source(task, function), descriptor, data)

            task.container = await self._launcher.launch(spec, on_log)
            if task.is_leaving():  # since a moment ago
                task.container.kill()
            code = await task.container.wait()
        except (EngineError, OSError) as error:
            self.logs.say(task.app_id, f"{error}\n", self._source(task, function))
            if not task.failed_start:
                self.start_failed(task, failure(str(error), _Status.GENERIC_STATUS_INIT_FAILURE))
        finally:
            self.logs.forget_task(task.app_id, self._source(task, function))
            self._ended(task, code)
            if task.door is not None:
                task.door.close()
                await task.door.wait_closed()

    def _source(self, task: Task, function: Function) -> Source:
        """Where a container's output belongs; to an input, where it runs one only."""
        bound_id, base_id = (function.id, function.base_id) if function.base_id else ("", function.id)
        held = list(self.calls.running.get(task.id, ()))
        if len(held) != 1:
            return Source(base_id, bound_id, task.id)
        return Source(base_id, bound_id, task.id, held[0], self.calls.inputs[held[0]].call_id)

    def _ended(self, task: Task, code: int | None) -> None:
        pool = self.pool(task.function_id)
        pool.tasks.pop(task.id, None)
        self.tasks.pop(task.id, None)
        task.gone.set()
        pool.drop_waiters_of(task)
        unexpected = not (task.stopping or task.ending)
        _again, spent = self.calls.lose(task.id, blame=unexpected)
        ending = self._describe_end(task, code)
        for one in spent:
            self.finish(one, failure(ending))
        if not task.ready and unexpected and not task.failed_start and code is not None:
            self._back_off(pool)
            if pool.crashes_at_start >= _MOST_STARTS:
                self._fail_unless_served(pool, failure(ending, _Status.GENERIC_STATUS_INIT_FAILURE))
        elif spent:
            self._back_off(pool)
        if not self._closing:
            self.poke(task.function_id)

    def _describe_end(self, task: Task, code: int | None) -> str:
        if code is None:
            return "the container could not be started"
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        if code == -9:  # noqa: PLR2004 (SIGKILL)
            how += " (out of memory, or killed from outside)"
        when = "while it ran this input" if task.ready else "before it was ready"
        lines = self.logs.tail(task.app_id, task.id)
        last = f" Its last log lines:\n{lines}" if lines else " It logged nothing."
        return f"Container {task.id} {how} {when}.{last}"

    def _back_off(self, pool: Pool) -> None:
        delay = pool.back_off(time.monotonic())
        asyncio.get_running_loop().call_later(delay + 0.01, self.poke, pool.function_id)

    def _fail_unless_served(self, pool: Pool, result: api_pb2.GenericResult) -> None:
        """Fail what waits, but not where other containers of the pool are up and take inputs."""
        if not any(task.ready for task in pool.alive()):
            self.fail_queued(pool.function_id, result)

    def start_failed(self, task: Task, result: api_pb2.GenericResult) -> None:
        """The user's start-up code failed: everyone who waits gets that error, and starts back off."""
        if not task.failed_start:
            task.failed_start = True
            pool = self.pool(task.function_id)
            pool.last_failure = result.exception
            self._back_off(pool)
            self._fail_unless_served(pool, result)

    def became_ready(self, task: Task) -> None:
        """The container asked for its first input."""
        if not task.ready:
            task.ready, task.idle_since = True, time.monotonic()
            self.pool(task.function_id).crashes_at_start = 0

    def stop(self, task: Task, *, grace_s: float = STOP_GRACE_S, interrupt: bool = False) -> None:
        """Let a container leave: it ends what it runs, then its exit hooks run within *grace_s*.

        With *interrupt*, or a shorter grace than usual, the time counts from now, and what it runs
        is broken off; with none, it is killed.
        """
        busy = bool(self.calls.running.get(task.id) or task.ending)
        task.stopping = True
        if interrupt or not busy or grace_s < STOP_GRACE_S:
            task.stop_by = min(task.stop_by, time.monotonic() + grace_s)
        self.pool(task.function_id).drop_waiters_of(task)
        if task.container is None:
            return
        function = self.registry.functions.get(task.function_id)
        if grace_s <= 0:
            task.container.kill()
        elif function is not None and function.definition.is_server:
            task.container.terminate()
        elif interrupt and not task.ready:
            task.container.interrupt()
        elif interrupt:
            for input_id in [*self.calls.running.get(task.id, ()), *task.ending]:
                task.ask_to_cancel(input_id)
            task.interrupt_at = min(task.interrupt_at, time.monotonic() + INTERRUPT_EVERY_S)

    async def stop_app(self, app_id: str, *, grace_s: float = STOP_GRACE_S) -> None:
        """End every input and container of an app, and wait until they are gone."""
        functions = [function.id for function in self.registry.functions_of(app_id)]
        gone = failure("the app was stopped", _Status.GENERIC_STATUS_TERMINATED)
        for one in self.calls.queued_of(functions):
            self.finish(one, gone)
        leaving = [task for task in self.tasks.values() if task.app_id == app_id]
        for task in leaving:
            for input_id in list(self.calls.running.get(task.id, ())):
                task.ending[input_id] = time.monotonic() + grace_s
                self.finish(self.calls.inputs[input_id], gone)
            self.stop(task, grace_s=grace_s, interrupt=True)
        for task in leaving:
            await task.gone.wait()
        for function_id in functions:
            self.pools.pop(function_id, None)

    # -- the clock ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)  # noqa: TID251 (the scheduler's own clock)
            now = time.monotonic()
            late, before = now - before > _LATE_S, now
            if late:
                continue
            for task in list(self.tasks.values()):
                function = self.registry.functions.get(task.function_id)
                self._deadlines.check(task, function.definition if function else None, now)
            for pool in list(self.pools.values()):
                self._scale(pool)
                self._scale_down(pool, now)

    def _scale_down(self, pool: Pool, now: float) -> None:
        function = self.registry.functions.get(pool.function_id)
        if function is None or not pool.tasks:
            return
        scaling = self.scaling(function)
        alive = pool.alive()
        spare = len(alive) - self._wanted(pool, scaling)[0]
        held = self.calls.running
        idle = [task for task in alive if task.ready and not held.get(task.id) and not task.ending]
        for task in sorted(idle, key=lambda task: task.idle_since):
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
