"""Calls and their inputs: what is queued, what runs where, what came out. No clock, no socket.

An input moves QUEUED → RUNNING → DONE; a retry, or the loss of its container, moves it back to
QUEUED. Only the first final result counts: whatever comes later for the same input is dropped.

Source:
    Retries are the server's (``sync_client_retries_enabled=False``), so that they hold for spawned
    calls too; outputs therefore always carry ``retry_count`` 0, or ``.map`` waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.ids import new_id

__all__ = ["MOST_CRASHES", "Call", "CallTable", "Input", "InputStatus", "Retry", "failure"]

_Status = api_pb2.GenericResult.GenericStatus
# How often an input whose container died is run again. Source: our choice; Modal states no number.
MOST_CRASHES = 3


class InputStatus(Enum):
    """Where an input is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True)
class Input:
    """One input of a call."""

    id: str
    call_id: str
    function_id: str
    idx: int
    payload: api_pb2.FunctionInput
    status: InputStatus = InputStatus.QUEUED
    task_id: str = ""
    attempts: int = 0
    crashes: int = 0
    delivered_at: float = 0.0
    delayed: bool = False


@dataclass(slots=True)
class Call:
    """One `.remote`, `.map` or `.spawn`, with its outputs in order of completion."""

    id: str
    function_id: str
    kind: int
    invocation: int
    parent_input_id: str
    created_at: float
    retry_policy: api_pb2.FunctionRetryPolicy
    opened_by: str = ""
    inputs: dict[int, str] = field(default_factory=dict)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    cancelled: bool = False
    cleared: bool = False
    last_read_at: float = 0.0

    @property
    def unfinished(self) -> int:
        """How many inputs have no final result yet."""
        return len(self.inputs) - len(self.outputs)


@dataclass(frozen=True, slots=True)
class Retry:
    """An input is to be queued again after *delay_s*."""

    input_id: str
    delay_s: float


def failure(message: str, status: int = _Status.GENERIC_STATUS_FAILURE) -> api_pb2.GenericResult:
    """A result that the engine itself gives, without user data."""
    return api_pb2.GenericResult(status=status, exception=message)  # type: ignore[arg-type]


class CallTable:
    """All calls of one engine."""

    def __init__(self) -> None:
        """Start empty."""
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self.queues: dict[str, deque[str]] = {}
        self.running: dict[str, set[str]] = {}

    def open(
        self,
        function_id: str,
        *,
        kind: int,
        invocation: int,
        parent_input_id: str,
        now: float,
        retry_policy: api_pb2.FunctionRetryPolicy,
        opened_by: str = "",
    ) -> Call:
        """Begin a call without inputs; *opened_by* names the container that asked for it, if one did."""
        call = Call(new_id("fc"), function_id, kind, invocation, parent_input_id, now, retry_policy, opened_by)
        call.last_read_at = now
        self.calls[call.id] = call
        return call

    def add(self, call: Call, idx: int, payload: api_pb2.FunctionInput) -> Input:
        """Queue one input of *call*; the same index twice is the same input."""
        known = call.inputs.get(idx)
        if known is not None:
            return self.inputs[known]
        added = Input(new_id("in"), call.id, call.function_id, idx, payload)
        call.inputs[idx] = added.id
        self.inputs[added.id] = added
        self.queues.setdefault(call.function_id, deque()).append(added.id)
        return added

    def queued(self, function_id: str) -> int:
        """How many inputs of a function wait for a container."""
        return len(self.queues.get(function_id, ()))

    def take(self, function_id: str, task_id: str, most: int, now: float) -> list[Input]:
        """Hand up to *most* queued inputs to a container."""
        queue = self.queues.get(function_id)
        taken: list[Input] = []
        while queue and len(taken) < most:
            one = self.inputs.get(queue.popleft())
            if one is None or one.status is not InputStatus.QUEUED:
                continue
            one.status, one.task_id, one.delivered_at = InputStatus.RUNNING, task_id, now
            self.running.setdefault(task_id, set()).add(one.id)
            taken.append(one)
        return taken

    def holds(self, task_id: str, call_id: str) -> bool:
        """Whether a container runs an input of this call now."""
        held = map(self.inputs.get, self.running.get(task_id, ()))
        return any(one is not None and one.call_id == call_id for one in held)

    def settle(
        self,
        input_id: str,
        result: api_pb2.GenericResult,
        *,
        now: float,
        task_id: str = "",
        data_format: int = 0,
        started_at: float = 0.0,
        may_retry: bool = True,
    ) -> Retry | Call | None:
        """Take in a result: a retry to be queued later, the call that it finished for, or nothing.

        A result from a container that no longer owns the input is dropped.
        """
        one = self.inputs.get(input_id)
        if one is None or one.status is InputStatus.DONE or (task_id and one.task_id != task_id):
            return None
        call = self.calls[one.call_id]
        self.running.get(one.task_id, set()).discard(one.id)
        retryable = result.status in (_Status.GENERIC_STATUS_FAILURE, _Status.GENERIC_STATUS_TIMEOUT)
        if may_retry and retryable and not call.cancelled and one.attempts < call.retry_policy.retries:
            policy = call.retry_policy
            delay_ms = policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** one.attempts
            one.attempts += 1
            one.status, one.task_id, one.delayed = InputStatus.QUEUED, "", True
            return Retry(one.id, min(delay_ms, policy.max_delay_ms or delay_ms) / 1000)
        one.status = InputStatus.DONE
        one.payload = api_pb2.FunctionInput()  # the arguments are not needed again
        call.outputs.append(
            api_pb2.FunctionGetOutputsItem(
                result=result,
                idx=one.idx,
                input_id=one.id,
                data_format=data_format,  # type: ignore[arg-type]
                task_id=one.task_id,
                input_started_at=started_at,
                output_created_at=now,
            )
        )
        return call

    def requeue(self, input_id: str, *, front: bool = False) -> Input | None:
        """Queue an input again, after its delay or after the loss of its container."""
        one = self.inputs.get(input_id)
        if one is None or one.status is InputStatus.DONE:
            return None
        self.running.get(one.task_id, set()).discard(one.id)
        one.status, one.task_id, one.delayed = InputStatus.QUEUED, "", False
        queue = self.queues.setdefault(one.function_id, deque())
        if front:
            queue.appendleft(one.id)
        else:
            queue.append(one.id)
        return one

    def lose(self, task_id: str, *, blame: bool) -> tuple[list[Input], list[Input]]:
        """A container is gone: return inputs queued again, and those that died with it too often."""
        again: list[Input] = []
        spent: list[Input] = []
        for input_id in sorted(self.running.pop(task_id, set())):
            one = self.inputs[input_id]
            one.crashes += blame
            if one.crashes > MOST_CRASHES:
                spent.append(one)
            else:
                self.requeue(input_id, front=True)
                again.append(one)
        return again, spent

    def unfinished_of(self, call: Call) -> list[Input]:
        """The inputs of *call* that have no final result."""
        return [one for one in map(self.inputs.__getitem__, call.inputs.values()) if one.status is not InputStatus.DONE]

    def queued_of(self, function_ids: Iterable[str]) -> list[Input]:
        """All inputs that wait for a container of these functions, delayed ones included."""
        wanted = frozenset(function_ids)
        return [one for one in self.inputs.values() if one.function_id in wanted and one.status is InputStatus.QUEUED]

    def forget(self, call_id: str) -> None:
        """Drop a call whose outputs were read, with its inputs."""
        call = self.calls.pop(call_id, None)
        for input_id in call.inputs.values() if call else ():
            self.inputs.pop(input_id, None)
