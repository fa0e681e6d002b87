"""What is overdue in a container: inputs, starts, farewells. Looked at by the scheduler's clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.calls import CallTable, Input, failure
from gpuserve.engine.workers.tasks import Task

__all__ = ["ENDING_GRACE_S", "INTERRUPT_EVERY_S", "STOP_GRACE_S", "Deadlines"]

# Source: modal 1.6.4's container says "up to 30 seconds" for what lingers after its exit hooks.
STOP_GRACE_S = 30.0
# How long code may take to give way to a time-out before its container is killed. Source: our choice.
ENDING_GRACE_S = 5.0
# A container that is told to leave is interrupted this often, until it has let go of its inputs: modal
# 1.6.4 may lose a cancellation or a SIGINT that hits it between a generator's values. Source: our choice.
INTERRUPT_EVERY_S = 2.0
# Source: modal 1.6.4: ``timeout`` is 300 s unless given.
_DEFAULT_TIMEOUT_S = 300
_Status = api_pb2.GenericResult.GenericStatus


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Looks at one container, and ends what has run too long; called ten times a second.

    Attributes:
        stop: Lets a container leave within ``grace_s``, as the scheduler does.
        start_failed: Tells whoever waits that a container did not come up.
        expired: Gives an input its final result, or its next attempt.
        last_lines: The end of a container's log.
    """

    calls: CallTable
    stop: Callable[..., None]
    start_failed: Callable[[Task, api_pb2.GenericResult], None]
    expired: Callable[[Input, api_pb2.GenericResult], None]
    last_lines: Callable[[Task], str]

    def check(self, task: Task, definition: api_pb2.Function | None, now: float) -> None:
        """End what is overdue in *task*; its function may be gone."""
        if definition is None:
            self.stop(task, grace_s=ENDING_GRACE_S)
        running = self.calls.running.get(task.id)
        if running or task.ending:
            task.idle_since = now
        elif task.stopping:
            task.stop_by = min(task.stop_by, now + STOP_GRACE_S)
        if task.container is None:
            return
        if now > task.stop_by or any(now > by for by in task.ending.values()):
            self.stop(task, grace_s=0)
            return
        if now > task.interrupt_at and task.ending:
            task.interrupt_at = now + INTERRUPT_EVERY_S
            task.container.interrupt()
        if definition is None:
            return
        if not task.ready and not task.stopping:
            self._check_start(task, definition, now)
        timeout_s = definition.timeout_secs or _DEFAULT_TIMEOUT_S
        for input_id in list(running or ()):
            one = self.calls.inputs[input_id]
            if now - one.delivered_at > timeout_s:
                self._expire(task, one, timeout_s, alone=definition.max_concurrent_inputs <= 1, now=now)

    def _check_start(self, task: Task, definition: api_pb2.Function, now: float) -> None:
        allowed = definition.startup_timeout_secs or definition.timeout_secs or _DEFAULT_TIMEOUT_S
        if now - task.began <= allowed:
            return
        message = f"Container {task.id} was not ready within its start-up time-out of {allowed} s."
        lines = f" Its last log lines:\n{found}" if (found := self.last_lines(task)) else " It logged nothing."
        self.start_failed(task, failure(message + lines, _Status.GENERIC_STATUS_INIT_FAILURE))
        self.stop(task, grace_s=0)

    def _expire(self, task: Task, one: Input, timeout_s: int, *, alone: bool, now: float) -> None:
        message = f"Input {one.id} ran longer than its timeout of {timeout_s} s"
        task.ending[one.id] = now + ENDING_GRACE_S
        self.expired(one, failure(message, _Status.GENERIC_STATUS_TIMEOUT))
        if alone:
            self.stop(task, grace_s=ENDING_GRACE_S, interrupt=True)
        else:
            task.ask_to_cancel(one.id)
