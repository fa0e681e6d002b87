"""One container as the scheduler sees it, and the pool of one function's containers."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from grpclib.server import Server

from gpuserve.engine.workers.launcher import Container

__all__ = ["Pool", "Task"]


@dataclass(slots=True)
class Task:
    """A container from the decision to start it to its exit.

    ``ready`` is true from the first request for inputs on (servers: from their ready call).
    ``stopping`` means that it gets no more inputs; the next time it asks, it is told to leave.
    """

    id: str
    function_id: str
    app_id: str
    enqueued_at: float
    started_at: float = 0.0
    ready_at: float = 0.0
    idle_since: float = 0.0
    container: Container | None = None
    door: Server | None = None
    ready: bool = False
    stopping: bool = False
    stop_by: float = 0.0
    failed_start: bool = False
    cancelled_inputs: bool = False
    startup_expired: bool = False
    cancels: set[str] = field(default_factory=set)
    cancels_changed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Pool:
    """The containers of one function.

    ``crashes_at_start`` counts exits before the first request for inputs, in a row; each one
    doubles the wait before the next start.
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
