"""Counters, sets, limits and progress in one process: faults, forks, clocks and every order of things."""

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import gpuserve
from gpuserve.runtime.state import MemoryEntries


class Failing(MemoryEntries):
    """Entries whose next write fails: before it takes effect, or after it, so that only its answer is lost."""

    def __init__(self):
        super().__init__()
        self.next_write = "works"

    def _write(self, write, key, value):
        how, self.next_write = self.next_write, "works"
        if how == "fails before":
            raise ConnectionError(how)
        answer = write(key, value)
        if how == "fails after":
            raise ConnectionError(how)
        if how == "is repeated":  # Modal's client sends again what was not answered
            return write(key, value)
        return answer

    def put(self, key, value):
        return self._write(super().put, key, value)

    def put_new(self, key, value):
        return self._write(super().put_new, key, value)


class CountersAreTrue(RuleBasedStateMachine):
    """Writers come, add, fail and die; the sum is what was acknowledged, but for a last write in doubt."""

    def __init__(self):
        super().__init__()
        self.entries = Failing()
        self.writers = [gpuserve.Counter("sum", entries=self.entries) for _ in range(3)]
        self.certain = 0
        self.doubtful = [0, 0, 0]
        self.once = {}

    @rule(writer=st.integers(0, 2), amount=st.integers(-5, 5))
    def add(self, writer, amount):
        self.writers[writer].add(amount)
        self.certain += amount
        self.doubtful[writer] = 0

    @rule(writer=st.integers(0, 2), amount=st.integers(1, 5), how=st.sampled_from(["fails before", "fails after"]))
    def fail(self, writer, amount, how):
        self.entries.next_write = how
        with pytest.raises(ConnectionError):
            self.writers[writer].add(amount)
        self.doubtful[writer] = amount if how == "fails after" else self.doubtful[writer]

    @rule(writer=st.integers(0, 2), amount=st.integers(1, 5), name=st.integers(0, 3))
    def add_once(self, writer, amount, name):
        self.writers[writer].add(amount, once=name)
        self.once.setdefault(name, amount)

    @rule(writer=st.integers(0, 2))
    def die(self, writer):
        self.certain += self.doubtful[writer]  # it stays as it was stored
        self.doubtful[writer] = 0
        self.writers[writer] = gpuserve.Counter("sum", entries=self.entries)

    @invariant()
    def everybody_reads_the_sum(self):
        expected = self.certain + sum(self.doubtful) + sum(self.once.values())
        assert {writer.value() for writer in self.writers} == {expected}


CountersAreTrue.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
test_counters_are_true = CountersAreTrue.TestCase


def test_additions_of_many_threads_are_all_counted_and_written_together_where_they_can():
    written = []

    class Slow(MemoryEntries):
        def put(self, key, value):
            written.append(value)
            super().put(key, value)

    counter = gpuserve.Counter("threads", entries=Slow())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(counter.add, range(1000)))
    assert counter.value() == sum(range(1000))
    assert len(written) <= 1000


def test_a_process_that_was_forked_or_restored_elsewhere_is_another_writer(monkeypatch):
    entries = MemoryEntries()
    counter = gpuserve.Counter("forked", entries=entries)
    counter.add(5)
    monkeypatch.setenv("MODAL_TASK_ID", "ta-restored-from-a-snapshot")
    counter.add(1)
    assert counter.value() == 6
    assert len(list(entries.items())) == 2


@given(asked=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["works", "is repeated"])), max_size=40))
def test_an_item_is_new_to_one_caller_also_where_the_answer_was_lost(asked):
    entries = Failing()
    told = {}
    for item, how in asked:
        entries.next_write = how
        told.setdefault(item, []).append(gpuserve.SeenSet("items", entries=entries).add(item))
    for answers in told.values():
        assert answers == [True] + [False] * (len(answers) - 1)


def test_an_item_is_new_to_one_of_many_threads():
    seen = gpuserve.SeenSet("threads", entries=MemoryEntries())
    items = [f"item {number % 50}" for number in range(400)]
    with ThreadPoolExecutor(8) as threads:
        new = [item for item, is_new in zip(items, threads.map(seen.add, items), strict=True) if is_new]
    assert sorted(new) == sorted(set(items))
    assert seen.add_all(["new", *items, "new"]) == [True] + [False] * 401


def test_who_took_an_item_and_comes_back_gets_it_again_and_a_discarded_one_is_new():
    seen = gpuserve.SeenSet("again", entries=MemoryEntries())
    assert seen.add("x", by="input 1")
    assert seen.add("x", by="input 1")
    assert not seen.add("x", by="input 2")
    seen.discard("x")
    assert "x" not in seen
    assert seen.add("x", by="input 2")


def test_an_item_whose_bytes_may_differ_between_processes_is_refused():
    for item in (1.5, ("a", 1), True, None):
        with pytest.raises(TypeError, match="an item is a str, bytes or int"):
            gpuserve.SeenSet("items", entries=MemoryEntries()).add(item)


@given(
    rate=st.sampled_from([0.5, 1.0, 3.0, 10.0]),
    burst=st.integers(1, 6),
    moves=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1.5)), max_size=120),
)
@settings(max_examples=80)
def test_no_span_of_time_has_more_than_the_rate_and_the_burst(rate, burst, moves):
    entries, now, begun = MemoryEntries(), [1_000_000.0], []
    limiters = [
        gpuserve.RateLimiter("api", rate_per_s=rate, burst=burst, entries=entries, clock=lambda: now[0])
        for _ in range(3)
    ]
    for container, later_s in moves:
        now[0] += later_s
        wait = limiters[container].wait_s()
        if wait == 0:
            begun.append(now[0])
        else:
            assert wait <= 1 / rate + 1e-6
    for first, start in enumerate(begun):
        for count, end in enumerate(begun[first:], start=1):
            assert count <= (end - start) * rate + burst + 1 + 1e-6


def test_who_waits_as_long_as_told_gets_a_token_and_old_ones_are_removed():
    entries, now = MemoryEntries(), [5000.0]
    limiter = gpuserve.RateLimiter("api", rate_per_s=1, burst=3, entries=entries, clock=lambda: now[0])
    taken = [limiter.wait_s() for _ in range(3)]
    for _ in range(400):
        now[0] += limiter.wait_s()
        taken.append(limiter.wait_s())
    assert set(taken) == {0.0}
    assert len(list(entries.items())) < 80


def test_keys_have_buckets_of_their_own():
    limiter = gpuserve.RateLimiter("api", rate_per_s=0.001, entries=MemoryEntries())
    assert limiter.wait_s("ada") == 0
    assert limiter.wait_s("alan") == 0
    assert limiter.wait_s("ada") > 0


def test_acquire_waits_for_the_next_token_and_gives_up_when_it_comes_too_late():
    quick = gpuserve.RateLimiter("quick", rate_per_s=200, entries=MemoryEntries())
    with quick.slot(), quick.slot(timeout_s=5):
        pass
    slow = gpuserve.RateLimiter("slow", rate_per_s=0.001, entries=MemoryEntries())
    slow.acquire()
    with pytest.raises(gpuserve.DeadlineError, match=r"'slow' allows 0\.001 a second and 1 at once") as refused:
        slow.acquire(timeout_s=0.1)
    assert refused.value.retry_after_s > 0


def test_progress_is_written_seldom_and_whole_at_the_end_of_its_block():
    now, entries = [1000.0], MemoryEntries()
    run = gpuserve.Progress("run", every_s=10, entries=entries, clock=lambda: now[0])
    assert (run.report().total, run.report().eta_s, run.report().rate_per_s) == (None, None, 0.0)
    run.expect(100)
    with run:
        run.advance(10)
        now[0] += 5
        run.advance(30)
        assert run.report().done == 10
        now[0] += 5
        run.advance(9, failed=1)
        assert run.report().done == 49
        now[0] += 1
        run.advance(1)
    report = run.report()
    assert (report.done, report.failed, report.writers, report.active) == (50, 1, 1, 1)
    assert report.rate_per_s == pytest.approx(51 / 11)
    assert report.eta_s == pytest.approx(49 / (51 / 11))


def test_state_travels_by_name_and_its_copy_is_another_writer():
    entries = gpuserve.Counter("travels", entries=None)
    assert pickle.loads(pickle.dumps(entries)) is not entries
    for one in (
        gpuserve.SeenSet("s"),
        gpuserve.RateLimiter("r", rate_per_s=2, burst=4),
        gpuserve.Progress("p", every_s=3),
    ):
        assert pickle.loads(pickle.dumps(one))._declared == one._declared


@pytest.mark.parametrize(
    ("declare", "faults"),
    [
        (lambda: gpuserve.Counter("a b"), ["name got 'a b'"]),
        (lambda: gpuserve.SeenSet(""), ["name got ''"]),
        (
            lambda: gpuserve.RateLimiter("x" * 48, rate_per_s=0, burst=0),
            ["name got", "rate_per_s got 0", "burst got 0"],
        ),
        (lambda: gpuserve.RateLimiter("x", rate_per_s=math.nan), ["rate_per_s got nan"]),
        (lambda: gpuserve.RateLimiter("x", rate_per_s=1e-9), ["outlive the seven days"]),
        (lambda: gpuserve.RateLimiter("x", rate_per_s="2", burst=True), ["rate_per_s got '2'", "burst got True"]),
        (lambda: gpuserve.Progress("x", every_s=-1), ["every_s got -1"]),
        (lambda: gpuserve.Progress("x").expect(-1), ["total got -1"]),
    ],
)
def test_all_that_is_wrong_is_told_at_once(declare, faults):
    with pytest.raises(gpuserve.DeclarationError) as refused:
        declare()
    assert len(refused.value.faults) == len(faults)
    for fault, told in zip(faults, refused.value.faults, strict=True):
        assert fault in told


def test_amounts_are_whole_and_entries_of_others_are_not_read_as_ours():
    entries = MemoryEntries()
    counter = gpuserve.Counter("whole", entries=entries)
    for amount in (1.5, "1", True):
        with pytest.raises(TypeError, match="whole number"):
            counter.add(amount)
    entries.put("share/theirs", 7)
    with pytest.raises(ValueError, match="was not written by gpuserve"):
        counter.value()


def test_what_is_told_while_another_write_is_under_way_is_written_after_it():
    began, may_end = threading.Event(), threading.Event()

    class Held(MemoryEntries):
        def put(self, key, value):
            if value[0] == (1,):
                began.set()
                may_end.wait(10)
            super().put(key, value)

    counter = gpuserve.Counter("held", entries=Held())
    first = threading.Thread(target=counter.add)
    first.start()
    began.wait(10)
    second = threading.Thread(target=counter.add)
    second.start()
    may_end.set()
    first.join()
    second.join()
    assert counter.value() == 2
