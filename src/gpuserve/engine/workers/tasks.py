"""One container as the scheduler sees it, and the pool of one function's containers."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from grpclib.server import Server

from gpuserve.engine.workers.launcher import Container

__all__ = ["Pool", "Task"]

# The wait before a start after failures in a row: the first, and the longest. Source: our choice.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0


@dataclass(slots=True)
class Task:
    """A container from the decision to start it to its exit. Times without a name of their own are monotonic.

    ``ready`` is true from the first request for inputs on (servers: from their ready call).
    ``stopping`` means that it gets no more inputs; the next time it asks, it is told to leave.

    Attributes:
        enqueued_at: When its start was decided, as a time of day.
        started_at: When it was started, as a time of day.
        began: When it was started.
        stop_by: When it is killed. It begins to count when its last input has ended.
        interrupt_at: When it gets a SIGINT, should it not have let go of its inputs by then.
        ending: Inputs that were ended from outside and that the container has not let go of yet, with
            the time at which it is killed for it.
        waits: How many requests it has open that wait for what others do.
        answers: Whether the port of a server was seen to answer, and not seen to refuse since.
    """

    id: str
    function_id: str
    app_id: str
    enqueued_at: float
    started_at: float = 0.0
    began: float = 0.0
    idle_since: float = 0.0
    container: Container | None = None
    door: Server | None = None
    ready: bool = False
    stopping: bool = False
    stop_by: float = float("inf")
    interrupt_at: float = float("inf")
    failed_start: bool = False
    ending: dict[str, float] = field(default_factory=dict)
    waits: int = 0
    answers: bool = False
    cancels: set[str] = field(default_factory=set)
    cancels_changed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def is_leaving(self) -> bool:
        """Whether it was told to stop by now."""
        return self.stopping

    def stopped_answering(self) -> None:
        """Nobody takes connections at its port."""
        self.answers = False

    def ask_to_cancel(self, input_id: str) -> None:
        """Have the container's next heartbeat tell it to break off an input."""
        self.cancels.add(input_id)
        self.cancels_changed.set()


@dataclass(slots=True)
class Pool:
    """The containers of one function.

    ``crashes_at_start`` counts in a row those that ended before their first request for inputs, and
    those that died with an input too often; each one doubles the wait before the next start.
    """

    function_id: str
    tasks: dict[str, Task] = field(default_factory=dict)
    waiters: deque[tuple[Task, asyncio.Future[None]]] = field(default_factory=deque)
    crashes_at_start: int = 0
    not_before: float = 0.0
    server_waiters: int = 0
    last_failure: str = ""
    started_total: int = 0
    peak: int = 0

    def back_off(self, now: float) -> float:
        """Count a failure; return how long nothing is started."""
        self.crashes_at_start += 1
        delay = min(_FIRST_WAIT_S * 2.0 ** min(self.crashes_at_start - 1, 30), _LONGEST_WAIT_S)
        self.not_before = now + delay
        return delay

    def alive(self) -> list[Task]:
        """The containers that take inputs, or will."""
        return [task for task in self.tasks.values() if not task.stopping]

    def drop_waiters_of(self, task: Task) -> None:
        """Let every pending request for inputs of *task* look again."""
        for entry in [entry for entry in self.waiters if entry[0] is task]:
            self.waiters.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)

    def wake(self, most: int) -> None:
        """Wake up to *most* containers that wait for inputs, the most recently idle first."""
        while most > 0 and self.waiters:
            _task, future = self.waiters.pop()
            if not future.done():
                future.set_result(None)
                most -= 1
