"""The batcher loses nothing, swaps nothing, and lets one bad item hurt only itself."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpuserve import BatchError, Batching, DeadlineError, QueueFullError
from gpuserve.runtime.batcher import Batcher, BatchQueue
from gpuserve.runtime.batcher.queue import TicketState


class QueueMachine(RuleBasedStateMachine):
    """Offers, cancels, batches, failures and time, against a plain list of who waits."""

    @initialize(
        size=st.integers(1, 6),
        room=st.integers(6, 20),
        cost=st.one_of(st.none(), st.floats(1, 30)),
        padded=st.booleans(),
        wait=st.sampled_from([0.0, 1.0]),
    )
    def begin(self, size, room, cost, padded, wait):
        self.size, self.room, self.most, self.padded = size, room, cost, padded
        self.queue = BatchQueue(max_batch_size=size, max_queue=room, max_batch_cost=cost, padded=padded, wait_s=wait)
        self.now, self.waiting, self.running, self.number = 0.0, [], [], 0

    @rule(cost=st.floats(0.5, 20), key=st.sampled_from("ab"), patience=st.one_of(st.none(), st.floats(0.1, 5)))
    def offer(self, cost, key, patience):
        deadline = None if patience is None else self.now + patience
        if len(self.waiting) >= self.room:
            with pytest.raises(QueueFullError):
                self.queue.offer(self.number, now=self.now, cost=cost, key=key, deadline=deadline)
            return
        self.waiting.append(self.queue.offer(self.number, now=self.now, cost=cost, key=key, deadline=deadline))
        self.number += 1

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds):
        self.now += seconds
        late = self.queue.expired(self.now)
        assert {ticket.item for ticket in late} == {
            ticket.item for ticket in self.waiting if ticket.deadline is not None and ticket.deadline <= self.now
        }
        self.waiting = [ticket for ticket in self.waiting if ticket not in late]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        ticket = data.draw(st.sampled_from(self.waiting))
        self.queue.cancel(ticket)
        self.waiting.remove(ticket)

    @rule()
    def take(self):
        again = bool(self.queue._again)
        batch = self.queue.take(self.now)
        if not batch:
            due = self.queue.ready_at(self.now)
            assert not self.waiting or (due is not None and due > self.now)
            return
        assert len(batch) <= self.size
        assert [ticket.number for ticket in batch] == sorted(ticket.number for ticket in batch)
        if self.most is not None and len(batch) > 1 and not again:
            costs = [ticket.cost for ticket in batch]
            assert (max(costs) * len(costs) if self.padded else sum(costs)) <= self.most + 1e-9
        if not again:
            oldest = {}
            for ticket in self.waiting:
                oldest.setdefault(ticket.key, ticket)
            assert set(oldest.values()) & set(batch), "a batch is built around the oldest of some key"
        for ticket in batch:
            self.waiting.remove(ticket)
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule()
    def fail(self):
        batch = self.running.pop()
        living = [ticket for ticket in batch if ticket.state is TicketState.RUNNING]
        if self.queue.split(batch):
            self.waiting = [*living, *self.waiting]
        else:
            assert len(batch) == 1

    @precondition(lambda self: self.running)
    @rule()
    def answer(self):
        for ticket in self.running.pop():
            ticket.state = TicketState.DONE

    @invariant()
    def counts_are_exact(self):
        if hasattr(self, "queue"):
            assert len(self.queue) == len(self.waiting)
            assert self.queue.room == max(0, self.room - len(self.waiting))


QueueMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestQueueMachine = QueueMachine.TestCase


def run_batcher(items, bad=frozenset(), **limits):
    calls = []

    async def run(batch):
        calls.append(list(batch))
        await asyncio.sleep(0)
        if bad & set(batch):
            raise ValueError(f"bad {sorted(bad & set(batch))}")
        return [item * 10 for item in batch]

    async def main():
        batcher = Batcher(run, Batching(**limits))
        answers = await asyncio.gather(*(batcher.submit(item) for item in items), return_exceptions=True)
        await batcher.aclose()
        return answers

    return asyncio.run(main()), calls


@given(count=st.integers(1, 60), bad=st.sets(st.integers(0, 59), max_size=3), size=st.integers(1, 16))
@settings(max_examples=100, deadline=None)
def test_every_good_item_is_answered_with_its_own_answer_beside_bad_ones(count, bad, size):
    answers, calls = run_batcher(range(count), frozenset(bad), max_batch_size=size, max_queue=64)
    for item, answer in enumerate(answers):
        if item in bad:
            assert isinstance(answer, ValueError)
        else:
            assert answer == item * 10
    if not bad:
        assert sum(map(len, calls)) == count


def test_one_bad_item_costs_two_calls_a_halving():
    answers, calls = run_batcher(range(64), frozenset({37}), max_batch_size=64, max_queue=64)
    assert sum(isinstance(answer, ValueError) for answer in answers) == 1
    assert len(calls) == 1 + 2 * 6  # 64 is halved six times


def test_a_lone_request_does_not_wait_while_the_model_is_idle():
    answers, calls = run_batcher([1], max_batch_size=32)
    assert (answers, calls) == ([10], [[1]])


def test_a_wrong_number_of_answers_is_an_error_that_says_so():
    async def main():
        async def run(batch):
            return [0] * (len(batch) + 1)

        with pytest.raises(BatchError, match="answered 1 items with 2 values"):
            await Batcher(run, Batching()).submit("a")

    asyncio.run(main())


def test_a_full_queue_refuses_and_many_items_wait_for_room_instead():
    async def main():
        gate = asyncio.Event()

        async def run(batch):
            await gate.wait()
            return batch

        batcher = Batcher(run, Batching(max_batch_size=1, max_queue=2))
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(batcher.submit(number)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as refused:
            await batcher.submit(3)
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
        many = asyncio.create_task(batcher.submit_many(range(10, 20)))
        gate.set()
        assert await many == list(range(10, 20))
        assert await asyncio.gather(first, *waiting) == [0, 1, 2]

    asyncio.run(main())


def test_a_caller_that_leaves_gives_up_its_place():
    async def main():
        gate, seen = asyncio.Event(), []

        async def run(batch):
            await gate.wait()
            seen.extend(batch)
            return batch

        batcher = Batcher(run, Batching(max_batch_size=1))
        first = asyncio.create_task(batcher.submit("first"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone = asyncio.create_task(batcher.submit("gone"))
        last = asyncio.create_task(batcher.submit("last"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gate.set()
        assert await asyncio.gather(first, last) == ["first", "last"]
        assert seen == ["first", "last"]

    asyncio.run(main())


def test_what_is_not_begun_before_its_deadline_is_told_so():
    async def main():
        gate = asyncio.Event()

        async def run(batch):
            await gate.wait()
            return batch

        batcher = Batcher(run, Batching(max_batch_size=1))
        first = asyncio.create_task(batcher.submit("first"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        late = asyncio.create_task(batcher.submit("late", timeout_s=0.0))
        await asyncio.sleep(0)
        gate.set()
        assert await first == "first"
        with pytest.raises(DeadlineError):
            await late

    asyncio.run(main())


def test_who_floods_the_queue_keeps_nobody_else_waiting_for_more_than_a_turn():
    queue = BatchQueue(max_batch_size=4, max_queue=10_000)
    for number in range(1000):
        queue.offer(("greedy", number), now=0.0, key="greedy")
    for number in range(6):
        for key in ("modest", "shy"):
            queue.offer((key, number), now=1.0, key=key)

    batches = [[ticket.item for ticket in queue.take(now=2.0)] for _ in range(6)]

    counted = [[sum(key == name for key, _ in batch) for name in ("greedy", "modest", "shy")] for batch in batches]
    assert all(min(counts) >= 1 for counts in counted[:4]), "each has a place in each batch"
    assert sum(counts[1] for counts in counted) == sum(counts[2] for counts in counted) == 6
    for key in ("greedy", "modest", "shy"):
        numbers = [number for batch in batches for name, number in batch if name == key]
        assert numbers == sorted(numbers), "of one key, first come is first served"


@pytest.mark.parametrize(("padded", "sizes"), [(False, [3, 1]), (True, [2, 1, 1])])
def test_a_batch_is_filled_by_what_its_items_cost_padding_counted(padded, sizes):
    queue = BatchQueue(max_batch_size=8, max_queue=100, max_batch_cost=10, padded=padded)
    for cost in (1, 2, 7, 9):
        queue.offer(cost, now=0.0, cost=cost)

    batches = []
    while batch := queue.take(now=0.0):
        batches.append([ticket.item for ticket in batch])

    assert [len(batch) for batch in batches] == sizes
    assert all((max(batch) * len(batch) if padded else sum(batch)) <= 10 for batch in batches)
