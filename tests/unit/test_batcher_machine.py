"""The batcher at work against a plain list of who was promised what, on a clock that the test turns."""

import asyncio
import math
import random

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gpuserve import BatchError, Batching, DeadlineError, QueueFullError, RequestError
from gpuserve.runtime.batcher import Batcher


class TurnedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is what the test says."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run until nothing is left to do at this moment."""
        for _ in range(12):  # the longest chain of wake-ups, with room to spare
            self.call_soon(self.stop)
            self.run_forever()


class BatcherMachine(RuleBasedStateMachine):
    """Submits, cancels, poison, failing and wrong batches, slowness, time and a shutdown, in any order."""

    @initialize(
        size=st.integers(1, 9),
        room=st.integers(9, 24),
        cost=st.one_of(st.none(), st.integers(3, 30)),
        padded=st.booleans(),
        wait_ms=st.sampled_from([0, 1000]),
    )
    def begin(self, size, room, cost, padded, wait_ms):
        self.loop = TurnedLoop()
        self.size, self.room, self.wait_s = size, room, wait_ms / 1000
        limits = Batching(max_batch_size=size, max_queue=room, max_batch_cost=cost, padded=padded, wait_ms=wait_ms)
        self.batcher = Batcher(self.run, limits, cost=lambda item: item[1])
        self.callers = {}  # item -> task
        self.arrived, self.deadline, self.poison = {}, {}, set()
        self.running, self.release = (), None
        self.calls, self.first_size, self.answered, self.failed = {}, {}, set(), {}
        self.number, self.leaving = 0, None

    async def run(self, batch):
        assert not self.running, "one batch at a time"
        self.running, self.release = tuple(batch), self.loop.create_future()
        for item in batch:
            assert item in self.callers, "an item that nobody waits for is not run"
            assert item not in self.answered, "an item that was answered is not run again"
            self.calls[item] = self.calls.get(item, 0) + 1
            self.first_size.setdefault(item, len(batch))
        assert len(batch) <= self.size
        assert len(set(batch)) == len(batch)
        try:
            return await self.release
        finally:
            self.running = ()

    def waiting(self):
        return [item for item, task in self.callers.items() if item not in self.running and not task.done()]

    @rule(poison=st.sampled_from([False, False, False, True]), cost=st.integers(1, 9), key=st.sampled_from("abc"),
          patience=st.one_of(st.none(), st.none(), st.floats(0.1, 4)))  # fmt: skip
    def submit(self, poison, cost, key, patience):
        full = len(self.waiting()) >= self.room
        item = (self.number, cost)
        self.number += 1
        task = self.loop.create_task(self.batcher.submit(item, key=key, timeout_s=patience))
        if not full and self.leaving is None:
            self.callers[item] = task
            self.arrived[item] = self.loop.now
            self.deadline[item] = None if patience is None else self.loop.now + patience
            if poison:
                self.poison.add(item)
        self.loop.settle()
        if self.leaving is not None:
            assert isinstance(task.exception(), RequestError)
            assert task.exception().code == "shutting_down"
        elif full:
            assert isinstance(task.exception(), QueueFullError)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data):
        item = data.draw(st.sampled_from(sorted(self.callers)))
        task = self.callers.pop(item)
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            self.check(item, task)
        self.loop.settle()

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["answer", "answer", "answer", "raise", "wrong length"]))
    def finish(self, how):
        batch = self.running
        bad = [item for item in batch if item in self.poison]
        if how == "raise" or (how == "answer" and bad):
            self.release.set_exception(ValueError(f"bad {bad}"))
        elif how == "wrong length":
            self.release.set_result([0] * (len(batch) + 1))
        else:
            self.answered |= set(batch)
            self.release.set_result([(item, "answer") for item in batch])
        if len(batch) == 1 and not (how == "answer" and not bad):
            self.failed[batch[0]] = BatchError if how == "wrong length" else ValueError
        self.loop.settle()

    @rule(seconds=st.floats(0.01, 2))
    def pass_time(self, seconds):
        self.loop.now += seconds
        self.loop.settle()

    @precondition(lambda self: self.leaving is None and self.number > 10)
    @rule()
    def shut_down(self):
        self.leaving = self.loop.create_task(self.batcher.aclose())
        self.loop.settle()

    def check(self, item, task):
        """What the caller of *item* was told is what it had to be told."""
        error = task.exception()
        if error is None:
            assert task.result() == (item, "answer"), "an answer is its own request's"
            assert item in self.answered
        elif isinstance(error, DeadlineError):
            assert self.deadline[item] is not None
            assert self.deadline[item] <= self.loop.now
        else:
            assert type(error) is self.failed[item]
        if item in self.first_size:
            assert self.calls[item] <= math.ceil(math.log2(self.first_size[item])) + 1, "found by halving"

    @invariant()
    def everybody_is_told_in_time(self):
        if not hasattr(self, "loop"):
            return
        for item, task in list(self.callers.items()):
            if task.done():
                self.check(item, task)
                del self.callers[item]
            elif item in self.answered:
                raise AssertionError("answered, and not told")
        assert len(self.batcher) == len(self.waiting()), "the count is exact"
        if not self.running:
            late = [item for item in self.waiting() if self.loop.now - self.arrived[item] >= self.wait_s + 0.005]
            assert not late, "an idle model leaves nobody waiting"
        for item in self.waiting():
            assert self.deadline[item] is None or self.running or self.deadline[item] > self.loop.now

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        if self.leaving is None:
            self.shut_down()
        for _ in range(10 * self.number + 10):
            self.loop.now += self.wait_s
            self.loop.settle()
            if not self.running:
                break
            self.finish("answer")
        self.everybody_is_told_in_time()
        assert not self.callers, "everybody who stayed was told"
        assert self.leaving.done()
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


BatcherMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestBatcherMachine = BatcherMachine.TestCase


@pytest.mark.heavy
@pytest.mark.parametrize("examples", [2_000, 50_000])
def test_the_full_counts(examples):
    profile = settings(
        max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    run_state_machine_as_test(BatcherMachine, settings=profile)


def soak(requests: int, seed: int) -> None:
    """Every answer is its request's own, beside callers that leave and items that fail."""
    draw = random.Random(seed)
    print(f"seed {seed}")
    told = {"answer": 0, "poison": 0, "left": 0}

    async def run(batch):
        await asyncio.sleep(0)
        if any(number % 100 == 7 for number in batch):
            raise ValueError
        return batch

    async def main():
        batcher = Batcher(run, Batching(max_batch_size=64, max_queue=2048))

        async def ask(number):
            try:
                assert await batcher.submit(number, key=str(number % 5)) == number
                told["answer"] += 1
            except ValueError:
                assert number % 100 == 7
                told["poison"] += 1
            except asyncio.CancelledError:
                told["left"] += 1

        for start in range(0, requests, 1024):
            tasks = [asyncio.create_task(ask(number)) for number in range(start, min(start + 1024, requests))]
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            for task in tasks:
                if draw.random() < 0.05:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert len(batcher) == 0
        await batcher.aclose()
        assert not batcher._futures

    asyncio.run(main())
    never_begun = requests - sum(told.values())  # cancelled before its first step: the coroutine never ran
    assert 0 <= never_begun < requests * 0.06
    assert told["answer"] > requests * 0.9
    assert told["poison"] > requests * 0.009


def test_a_soak_of_ten_thousand():
    soak(10_000, seed=1)


@pytest.mark.heavy
def test_a_soak_of_a_million():
    soak(1_000_000, seed=random.randrange(2**32))
