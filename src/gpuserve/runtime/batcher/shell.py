"""The batcher at work: callers wait, one batch runs at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpuserve.exceptions import BatchError, DeadlineError, RequestError
from gpuserve.runtime.batcher.queue import BatchQueue, Ticket, TicketState
from gpuserve.runtime.telemetry.record import CURRENT
from gpuserve.specs.batching import Batching

__all__ = ["BatchRecord", "Batcher"]

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that was run, for whoever counts.

    Attributes:
        size: Items.
        cost: Their costs, summed.
        queue_s: How long each of them waited.
        model_s: How long the batch ran.
        failed: Whether it raised, or answered wrongly.
        begun: When it was begun, on the clock of its loop.
        fault: What it raised, by its type's name alone.
    """

    size: int
    cost: float
    queue_s: tuple[float, ...]
    model_s: float
    failed: bool
    begun: float = 0.0
    fault: str = ""


class Batcher(Generic[In, Out]):
    """Gathers what many callers submit into batches for one function.

    While a batch runs the next one gathers; a failing item is found by halving its batch, so that
    the others are answered. A caller that is cancelled gives up its place.

    Args:
        run: Answers a batch, in order; one value an item.
        batching: The limits.
        cost: What an item adds to a batch.
        on_batch: Told of each batch that was run.
    """

    def __init__(
        self,
        run: Callable[[list[In]], Awaitable[Sequence[Out]]],
        batching: Batching,
        cost: Callable[[In], float] | None = None,
        on_batch: Callable[[BatchRecord], None] = lambda _record: None,
    ) -> None:
        self._run = run
        self._on_batch = on_batch
        self._cost = cost
        self._queue: BatchQueue[In] = BatchQueue(
            max_batch_size=batching.max_batch_size,
            max_queue=batching.max_queue,
            max_batch_cost=batching.max_batch_cost,
            padded=batching.padded,
            wait_s=batching.wait_ms / 1000,
        )
        self._futures: dict[Ticket[In], asyncio.Future[Out]] = {}
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False
        self._worker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._queue)

    async def submit(self, item: In, *, key: str = "", timeout_s: float | None = None) -> Out:
        """Answer *item*, in whatever batch it comes to lie.

        Raises:
            QueueFullError: If too many wait already.
            DeadlineError: If it was not begun within *timeout_s*.
        """
        ticket, future = self._offer(item, key, timeout_s)
        try:
            return await future
        finally:
            self._forget(ticket)

    async def submit_many(self, items: Iterable[In], *, key: str = "") -> list[Out]:
        """Answer *items* in their order, waiting for room in the queue instead of being refused.

        Raises:
            ExceptionGroup: Never: the first failure in their order is raised as it is.
        """
        tickets: list[Ticket[In]] = []
        futures: list[asyncio.Future[Out]] = []
        try:
            for item in items:
                while not self._queue.room:
                    self._room.clear()
                    await self._room.wait()
                ticket, future = self._offer(item, key, None)
                tickets.append(ticket)
                futures.append(future)
            if futures:
                await asyncio.wait(futures)
            return [future.result() for future in futures]
        finally:
            for ticket in tickets:
                self._forget(ticket)

    async def aclose(self) -> None:
        """Finish what waits, then refuse."""
        self._closing = True
        self._changed.set()
        if self._worker is not None:
            await self._worker

    def _offer(self, item: In, key: str, timeout_s: float | None) -> tuple[Ticket[In], asyncio.Future[Out]]:
        if self._closing:
            raise RequestError("the server is shutting down; try again", "shutting_down", 503, 1.0)
        loop = asyncio.get_running_loop()
        now = loop.time()
        cost = 1.0 if self._cost is None else float(self._cost(item))
        ticket = self._queue.offer(
            item, now=now, cost=cost, key=key, deadline=None if timeout_s is None else now + timeout_s
        )
        future: asyncio.Future[Out] = loop.create_future()
        self._futures[ticket] = future
        self._changed.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work(), name="gpuserve-batcher")
        return ticket, future

    def _forget(self, ticket: Ticket[In]) -> None:
        future = self._futures.pop(ticket, None)
        if ticket.state is not TicketState.DONE:
            self._queue.cancel(ticket)
            self._room.set()
        request = CURRENT.get()
        if request is not None and ticket.ran_in is not None:
            batch = ticket.ran_in
            request.ran(batch.begun - ticket.arrived, batch.model_s, batch.size, ticket.cost)
        if future is not None and future.done() and not future.cancelled():
            future.exception()  # seen: nobody is left to be told

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            for ticket in self._queue.expired(now):
                self._fail(
                    ticket, DeadlineError("not begun before its deadline; try again later", "deadline", 504, 1.0)
                )
            batch = self._queue.take(now)
            if batch:
                self._room.set()
                await self._run_batch(batch)
            elif self._closing and not len(self._queue):
                return
            else:
                await self._wait_for_change(now)

    async def _wait_for_change(self, now: float) -> None:
        moments = [moment for moment in (self._queue.ready_at(now), self._queue.next_deadline()) if moment is not None]
        self._changed.clear()
        try:
            async with asyncio.timeout_at(min(moments) if moments else None):
                await self._changed.wait()
        except TimeoutError:
            return  # a batch or a deadline is due

    async def _run_batch(self, batch: tuple[Ticket[In], ...]) -> None:
        clock = asyncio.get_running_loop().time
        begun, fault = clock(), "CancelledError"
        try:
            fault = await self._answer_batch(batch)
        finally:
            cost = sum(ticket.cost for ticket in batch)
            waited = tuple(begun - ticket.arrived for ticket in batch)
            record = BatchRecord(len(batch), cost, waited, clock() - begun, bool(fault), begun, fault)
            for ticket in batch:
                ticket.ran_in = record
            self._on_batch(record)

    async def _answer_batch(self, batch: tuple[Ticket[In], ...]) -> str:
        """Run a batch and tell its callers; the name of what it failed with, empty if it did not."""
        try:
            answers = await self._run([ticket.item for ticket in batch])
            if len(answers) != len(batch):
                raise BatchError(  # noqa: TRY301 (a wrong length is isolated as an exception is)
                    f"answered {len(batch)} items with {len(answers)} values; return one value an item, in order"
                )
        except Exception as error:  # noqa: BLE001 (it is the caller's: handed on to whom it concerns)
            if not self._queue.split(batch):
                for ticket in batch:
                    self._fail(ticket, error)
            return type(error).__name__
        for ticket, answer in zip(batch, answers, strict=True):
            ticket.state = TicketState.DONE
            future = self._futures.get(ticket)
            if future is not None and not future.done():
                future.set_result(answer)
        return ""

    def _fail(self, ticket: Ticket[In], error: Exception) -> None:
        ticket.state = TicketState.DONE
        future = self._futures.get(ticket)
        if future is not None and not future.done():
            future.set_exception(error)
