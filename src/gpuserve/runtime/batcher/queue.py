"""The queue that batches are formed from: no clock, no tasks, no I/O.

Time is what the caller says it is, so that every schedule can be tested without waiting.

The rules:

- The next batch is built around the oldest item of the key whose turn it is: nothing starves.
- Around it, while one key waits alone, items of like cost are preferred within a short window, since a
  padded batch costs its size times its dearest item.
- Between keys, batches are filled in turn, so that a caller who floods the queue delays itself.
- Batches that failed are halved and come again first, until the item that fails is alone.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

from gpuserve.exceptions import QueueFullError

__all__ = ["BatchQueue", "Ticket", "TicketState"]

Item = TypeVar("Item")

# Items looked at for company of like cost, in batches: wide enough to sort, narrow enough to stay fair.
_WINDOW_BATCHES = 4
_WINDOW_AT_LEAST = 64


class TicketState(Enum):
    """Where an item is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


@dataclass(eq=False, slots=True)
class Ticket(Generic[Item]):
    """One item's place in the queue.

    Attributes:
        cost: What it adds to a batch, e.g. tokens.
        key: Whose it is; batches are filled from all keys in turn.
        deadline: The time past which nobody waits for it.
        arrived: When it was offered.
        ran_in: What is known of the last batch that it was in.
    """

    item: Item
    cost: float
    key: str
    deadline: float | None
    arrived: float
    number: int
    state: TicketState = field(default=TicketState.WAITING)
    ran_in: Any = None


class BatchQueue(Generic[Item]):
    """A bounded queue of items, from which batches are taken.

    Examples:
        >>> queue: BatchQueue[str] = BatchQueue(max_batch_size=2, max_queue=10)
        >>> tickets = [queue.offer(text, now=0.0) for text in ("a", "b", "c")]
        >>> [ticket.item for ticket in queue.take(now=0.0)]
        ['a', 'b']
        >>> len(queue)
        1
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_queue: int,
        max_batch_cost: float | None = None,
        padded: bool = True,
        wait_s: float = 0.0,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_batch_cost = max_batch_cost
        self._max_queue = max_queue
        self._padded = padded
        self._wait_s = wait_s
        self._waiting: OrderedDict[str, deque[Ticket[Item]]] = OrderedDict()
        self._again: deque[tuple[Ticket[Item], ...]] = deque()
        self._count = 0
        self._numbers = itertools.count()
        self._deadlines: list[tuple[float, int, Ticket[Item]]] = []

    def __len__(self) -> int:
        """Items that wait, those of failed batches included."""
        return self._count

    @property
    def room(self) -> int:
        """Items that may still be offered."""
        return max(0, self._max_queue - self._count)

    def offer(
        self, item: Item, *, now: float, cost: float = 1.0, key: str = "", deadline: float | None = None
    ) -> Ticket[Item]:
        """Put *item* in the queue.

        Raises:
            QueueFullError: If ``max_queue`` items wait already.
        """
        if self._count >= self._max_queue:
            raise QueueFullError(
                f"{self._count} requests wait already (max_queue={self._max_queue}); try again shortly",
                code="queue_full",
                status=429,
                retry_after_s=1.0,
            )
        ticket = Ticket(item, cost, key, deadline, now, next(self._numbers))
        self._waiting.setdefault(key, deque()).append(ticket)
        self._count += 1
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, ticket.number, ticket))
        return ticket

    def cancel(self, ticket: Ticket[Item]) -> None:
        """Nobody waits for it any more: it leaves the queue; in a running batch its answer is dropped."""
        if ticket.state is TicketState.WAITING:
            self._count -= 1
        ticket.state = TicketState.DONE

    def expired(self, now: float) -> list[Ticket[Item]]:
        """Take out the waiting items whose deadline has passed."""
        late: list[Ticket[Item]] = []
        while (due := self.next_deadline()) is not None and due <= now:
            ticket = heapq.heappop(self._deadlines)[2]
            self.cancel(ticket)
            late.append(ticket)
        return late

    def next_deadline(self) -> float | None:
        """The earliest deadline of a waiting item."""
        while self._deadlines and self._deadlines[0][2].state is not TicketState.WAITING:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def ready_at(self, now: float) -> float | None:
        """When the next batch may start; ``None`` while nothing waits."""
        if not self._count:
            return None
        if self._wait_s == 0 or self._count >= self._max_batch_size or self._again:
            return now
        oldest = min(ticket.arrived for ticket in self._all_waiting())
        return max(now, oldest + self._wait_s)

    def take(self, now: float) -> tuple[Ticket[Item], ...]:
        """The next batch, in the order of arrival; empty if none may start yet.

        Items whose deadline has passed are left for `expired`.
        """
        while self._again:
            batch = tuple(ticket for ticket in self._again.popleft() if ticket.state is TicketState.WAITING)
            if batch:
                return self._start(batch)
        ready = self.ready_at(now)
        if ready is None or ready > now:
            return ()
        window = max(_WINDOW_AT_LEAST, _WINDOW_BATCHES * self._max_batch_size)
        candidates = list(itertools.islice(self._in_turn(now), window))
        if not candidates:
            return ()
        batch = tuple(sorted(self._choose(candidates), key=lambda ticket: ticket.number))
        for key in dict.fromkeys(ticket.key for ticket in batch):
            self._waiting.move_to_end(key)  # whoever was served goes to the end of the turn
        return self._start(batch)

    def split(self, batch: Sequence[Ticket[Item]]) -> bool:
        """Put a failed batch back as two halves, which come first; false if it is down to one item."""
        living = [ticket for ticket in batch if ticket.state is TicketState.RUNNING]
        if len(batch) <= 1:
            return False
        middle = (len(living) + 1) // 2
        for ticket in living:
            ticket.state = TicketState.WAITING
            if ticket.deadline is not None:
                heapq.heappush(self._deadlines, (ticket.deadline, ticket.number, ticket))
        self._count += len(living)
        self._again.extendleft(tuple(half) for half in (living[middle:], living[:middle]) if half)
        return True

    def drain(self) -> list[Ticket[Item]]:
        """Take out everything that waits."""
        waiting = list(self._all_waiting())
        for ticket in waiting:
            self.cancel(ticket)
        return waiting

    def _start(self, batch: tuple[Ticket[Item], ...]) -> tuple[Ticket[Item], ...]:
        for ticket in batch:
            ticket.state = TicketState.RUNNING
        self._count -= len(batch)
        return batch

    def _all_waiting(self) -> Iterator[Ticket[Item]]:
        groups = itertools.chain(self._again, self._waiting.values())
        return (ticket for group in groups for ticket in group if ticket.state is TicketState.WAITING)

    def _in_turn(self, now: float) -> Iterator[Ticket[Item]]:
        """Waiting items, one of each key in turn, the oldest of all first."""
        for key in list(self._waiting):
            lane = self._waiting[key]
            while lane and lane[0].state is not TicketState.WAITING:
                lane.popleft()
            if not lane:
                del self._waiting[key]
        lanes = deque(iter(lane) for lane in self._waiting.values())
        while lanes:
            lane_iterator = lanes.popleft()
            for ticket in lane_iterator:
                if ticket.state is TicketState.WAITING and (ticket.deadline is None or ticket.deadline > now):
                    yield ticket
                    lanes.append(lane_iterator)
                    break

    def _choose(self, candidates: list[Ticket[Item]]) -> list[Ticket[Item]]:
        if len(candidates) <= self._max_batch_size and self._max_batch_cost is None:
            return candidates
        head, rest = candidates[0], candidates[1:]
        if self._padded and len({ticket.key for ticket in candidates}) == 1:
            rest.sort(key=lambda ticket: (abs(ticket.cost - head.cost), ticket.number))
        chosen, total, dearest = [head], head.cost, head.cost
        for ticket in rest:
            if len(chosen) == self._max_batch_size:
                break
            peak = max(dearest, ticket.cost)
            weight = peak * (len(chosen) + 1) if self._padded else total + ticket.cost
            if self._max_batch_cost is not None and weight > self._max_batch_cost:
                continue
            chosen.append(ticket)
            total += ticket.cost
            dearest = peak
        return chosen
