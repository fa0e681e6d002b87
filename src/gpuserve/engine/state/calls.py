"""Calls and their inputs: what is queued, what runs where, what came out. No clock, no socket.

An input moves QUEUED → RUNNING → DONE; a retry, or the loss of its container, moves it back to
QUEUED. Only the first final result counts: whatever comes later for the same input is dropped.

Source:
    Retries are the server's (``sync_client_retries_enabled=False``), so that they hold for spawned
    calls too; outputs therefore always carry ``retry_count`` 0, or ``.map`` waits for ever.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.ids import new_id

__all__ = ["MOST_CRASHES", "Call", "CallTable", "Input", "InputStatus", "Retry", "failure"]

_Status = api_pb2.GenericResult.GenericStatus
# How often an input whose container died is run again. Source: our choice; Modal states no number.
MOST_CRASHES = 3
# Source: modal.com/docs/guide/trigger-deployed-functions: results are kept for seven days.
_LIFE_S = 7 * 24 * 3600.0
# What finished calls may hold in memory; the oldest go first. Source: our choice.
_MOST_FINISHED = 100_000
_MOST_FINISHED_BYTES = 1 << 30
# The longest delay that any policy can ask for, so that 10.0 ** attempts cannot overflow.
_LONGEST_DELAY_MS = 3_600_000.0


class InputStatus(Enum):
    """Where an input is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(slots=True)
class Input:
    """One input of a call.

    Attributes:
        deliveries: How often it was handed to a container; a result says which delivery it is of.
        crashes: How many containers died with it; one that has any is run alone.
        delivered_at: When its container got it, in the seconds of a monotonic clock.
        delayed: It waits for the delay of a retry, and is in no queue.
    """

    id: str
    call_id: str
    function_id: str
    idx: int
    payload: api_pb2.FunctionInput
    status: InputStatus = InputStatus.QUEUED
    task_id: str = ""
    attempts: int = 0
    crashes: int = 0
    deliveries: int = 0
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
    most_crashes: int = MOST_CRASHES
    inputs: dict[int, str] = field(default_factory=dict)
    outputs: list[api_pb2.FunctionGetOutputsItem] = field(default_factory=list)
    by_idx: dict[int, api_pb2.FunctionGetOutputsItem] = field(default_factory=dict)
    blobs: list[str] = field(default_factory=list)
    bytes: int = 0
    released: int = 0
    cancelled: bool = False
    cleared: bool = False

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
    """All calls of one engine. Times are the seconds of whatever monotonic clock the caller reads."""

    def __init__(self) -> None:
        """Start empty."""
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Input] = {}
        self.running: dict[str, dict[str, None]] = {}
        self._queues: dict[str, OrderedDict[str, None]] = {}
        self._suspects: Counter[str] = Counter()
        self._unfinished: Counter[str] = Counter()
        self._finished: OrderedDict[str, float] = OrderedDict()
        self._finished_bytes = 0
        self._expired: OrderedDict[str, None] = OrderedDict()

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
        most_crashes: int = MOST_CRASHES,
    ) -> Call:
        """Begin a call without inputs; *opened_by* names the container that asked for it, if one did.

        *now* is a time of day, which callers see; the other methods get monotonic seconds.
        """
        call = Call(
            new_id("fc"), function_id, kind, invocation, parent_input_id, now, retry_policy, opened_by, most_crashes
        )
        self.calls[call.id] = call
        return call

    def add(self, call: Call, idx: int, payload: api_pb2.FunctionInput) -> Input:
        """Queue one input of *call*; the same index twice is the same input."""
        known = call.inputs.get(idx)
        if known is not None:
            return self.inputs[known]
        added = Input(new_id("in"), call.id, call.function_id, idx, payload)
        call.inputs[idx] = added.id
        if payload.args_blob_id:
            call.blobs.append(payload.args_blob_id)
        if self._finished.pop(call.id, None) is not None:
            self._finished_bytes -= call.bytes
        self.inputs[added.id] = added
        self._unfinished[call.function_id] += 1
        self._enter(added)
        return added

    def queued(self, function_id: str) -> int:
        """How many inputs of a function wait for a container; those in the delay of a retry do not."""
        return len(self._queues.get(function_id, ()))

    def suspects(self, function_id: str) -> int:
        """How many of them must be run alone, because a container died with them."""
        return self._suspects[function_id]

    def unfinished(self, function_id: str) -> int:
        """How many inputs of a function are queued, delayed or running."""
        return self._unfinished[function_id]

    def take(self, function_id: str, task_id: str, most: int, now: float, barred: Collection[str] = ()) -> list[Input]:
        """Hand up to *most* queued inputs to a container, in order, but none of *barred*.

        An input whose container died is handed out alone, and nothing beside it while it runs: if it
        brings down this container too, it takes no other input with it.
        """
        queue = self._queues.get(function_id, OrderedDict())
        held = self.running.get(task_id, {})
        taken: list[Input] = []
        if any(self.inputs[one].crashes for one in held):
            return taken
        for input_id in list(islice(queue, most + len(barred))):
            one = self.inputs[input_id]
            if one.id in barred:
                continue
            if len(taken) == most or (one.crashes and (held or taken)):
                break
            self._leave(one)
            one.status, one.task_id, one.delivered_at = InputStatus.RUNNING, task_id, now
            one.deliveries += 1
            taken.append(one)
            if one.crashes:
                break
        if taken:
            self.running.setdefault(task_id, {}).update(dict.fromkeys(one.id for one in taken))
        return taken

    def holds(self, task_id: str, call_id: str) -> bool:
        """Whether a container runs an input of this call now."""
        return any(self.inputs[one].call_id == call_id for one in self.running.get(task_id, ()))

    def _enter(self, one: Input, *, front: bool = False) -> None:
        queue = self._queues.setdefault(one.function_id, OrderedDict())
        queue[one.id] = None
        queue.move_to_end(one.id, last=not front)
        self._suspects[one.function_id] += one.crashes > 0

    def _leave(self, one: Input) -> None:
        """Take an input out of where it is: its queue, or its container's hands."""
        queue = self._queues.get(one.function_id, OrderedDict())
        if one.id in queue:
            del queue[one.id]
            self._suspects[one.function_id] -= one.crashes > 0
        held = self.running.get(one.task_id)
        if held is not None:
            held.pop(one.id, None)
            if not held:
                del self.running[one.task_id]

    def settle(
        self,
        input_id: str,
        result: api_pb2.GenericResult,
        *,
        now: float,
        at: float = 0.0,
        task_id: str = "",
        delivery: int | None = None,
        data_format: int = 0,
        started_at: float = 0.0,
        may_retry: bool = True,
    ) -> Retry | Call | None:
        """Take in a result: a retry to be queued later, the call that it finished for, or nothing.

        A result is dropped when it comes from a container that no longer owns the input, or of an
        older *delivery* to the same container. *at* is the time of day that the caller is told.
        """
        one = self.inputs.get(input_id)
        if one is None or one.status is InputStatus.DONE or (task_id and one.task_id != task_id):
            return None
        if delivery is not None and delivery != one.deliveries - 1:
            return None
        call = self.calls[one.call_id]
        self._leave(one)
        retryable = result.status in (_Status.GENERIC_STATUS_FAILURE, _Status.GENERIC_STATUS_TIMEOUT)
        if may_retry and retryable and not call.cancelled and one.attempts < call.retry_policy.retries:
            delay_s = _delay_ms(call.retry_policy, one.attempts) / 1000
            one.attempts += 1
            one.status, one.task_id, one.delayed = InputStatus.QUEUED, "", True
            return Retry(one.id, delay_s)
        one.status, one.delayed = InputStatus.DONE, False
        one.payload = api_pb2.FunctionInput()  # the arguments are not needed again
        self._unfinished[one.function_id] -= 1
        output = api_pb2.FunctionGetOutputsItem(
            result=result,
            idx=one.idx,
            input_id=one.id,
            data_format=data_format,  # type: ignore[arg-type]
            task_id=one.task_id,
            input_started_at=started_at,
            output_created_at=at,
        )
        call.outputs.append(output)
        call.by_idx[one.idx] = output
        call.bytes += output.ByteSize()
        if result.data_blob_id:
            call.blobs.append(result.data_blob_id)
        if not call.unfinished:
            self._finished[call.id] = now
            self._finished_bytes += call.bytes
        return call

    def requeue(self, input_id: str, *, front: bool = False) -> Input | None:
        """Queue an input again, after its delay or after the loss of its container."""
        one = self.inputs.get(input_id)
        if one is None or one.status is InputStatus.DONE:
            return None
        self._leave(one)
        one.status, one.task_id, one.delayed = InputStatus.QUEUED, "", False
        self._enter(one, front=front)
        return one

    def lose(self, task_id: str, *, blame: bool) -> tuple[list[Input], list[Input]]:
        """A container is gone: return inputs queued again, and those that died with it too often.

        They go to the front of the queue, in the order in which the container had got them.
        """
        held = [self.inputs[one] for one in self.running.pop(task_id, ())]
        again: list[Input] = []
        spent: list[Input] = []
        for one in reversed(held):
            one.crashes += blame
            if one.crashes > self.calls[one.call_id].most_crashes:
                spent.append(one)
            else:
                self.requeue(one.id, front=True)
                again.append(one)
        return again[::-1], spent[::-1]

    def hand_back(self, input_id: str, task_id: str) -> Input | None:
        """A container broke off an input that nobody cancelled: queue it again, a bounded number of times."""
        one = self.inputs.get(input_id)
        if one is None or one.status is not InputStatus.RUNNING or one.task_id != task_id:
            return None
        if one.crashes >= self.calls[one.call_id].most_crashes:
            return None
        one.crashes += 1
        return self.requeue(input_id, front=True)

    def unfinished_of(self, call: Call) -> list[Input]:
        """The inputs of *call* that have no final result."""
        return [one for one in map(self.inputs.__getitem__, call.inputs.values()) if one.status is not InputStatus.DONE]

    def queued_of(self, function_ids: Iterable[str]) -> list[Input]:
        """All inputs that wait for a container of these functions, delayed ones included."""
        wanted = frozenset(function_ids)
        return [one for one in self.inputs.values() if one.function_id in wanted and one.status is InputStatus.QUEUED]

    def release(self, call: Call, position: int) -> None:
        """Let go of the values of the first *position* outputs: their only reader has them."""
        for output in call.outputs[call.released : position]:
            freed = len(output.result.data)
            output.result.ClearField("data")
            call.bytes -= freed
            if call.id in self._finished:
                self._finished_bytes -= freed
        call.released = max(call.released, position)

    def forget(self, call_id: str) -> list[str]:
        """Drop a call with its inputs and outputs; return the ids of the blobs that were only its own."""
        call = self.calls.pop(call_id, None)
        if call is None:
            return []
        for input_id in call.inputs.values():
            one = self.inputs.pop(input_id)
            self._leave(one)
            self._unfinished[call.function_id] -= one.status is not InputStatus.DONE
        if not self._unfinished[call.function_id]:
            del self._unfinished[call.function_id]
        if self._finished.pop(call_id, None) is not None:
            self._finished_bytes -= call.bytes
        return call.blobs

    def outdated(self, now: float) -> list[str]:
        """Name the finished calls that may be dropped: too old, or the oldest of too many."""
        spare = len(self._finished) - _MOST_FINISHED
        heavy = self._finished_bytes - _MOST_FINISHED_BYTES
        found: list[str] = []
        for call_id, finished_at in self._finished.items():
            if now - finished_at <= _LIFE_S and spare <= 0 and heavy <= 0:
                break
            found.append(call_id)
            spare -= 1
            heavy -= self.calls[call_id].bytes
        return found

    def expire(self, call_id: str) -> list[str]:
        """Drop a call whose outputs were not read in time, and remember that it was there."""
        self._expired[call_id] = None
        if len(self._expired) > _MOST_FINISHED:
            self._expired.popitem(last=False)
        return self.forget(call_id)

    def is_expired(self, call_id: str) -> bool:
        """Whether a call was dropped because its outputs were not read in time."""
        return call_id in self._expired


def _delay_ms(policy: api_pb2.FunctionRetryPolicy, attempts: int) -> float:
    """How long the retry after the *attempts*-th one waits."""
    most = policy.max_delay_ms or _LONGEST_DELAY_MS
    try:
        return min(policy.initial_delay_ms * (policy.backoff_coefficient or 1.0) ** attempts, most)
    except OverflowError:
        return most
