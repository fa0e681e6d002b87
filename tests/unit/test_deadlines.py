"""What is overdue in a container is ended, and what is not is left alone."""

import pytest

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.calls import CallTable
from gpuserve.engine.workers.deadlines import ENDING_GRACE_S, INTERRUPT_EVERY_S, STOP_GRACE_S, Deadlines
from gpuserve.engine.workers.tasks import Pool, Task

Status = api_pb2.GenericResult.GenericStatus


class Signals:
    """The container's process: it only counts what it is sent."""

    def __init__(self):
        self.interrupts = 0

    def interrupt(self):
        self.interrupts += 1


class Bench:
    """One container under a clock of the test's own, and what was done to it."""

    def __init__(self, **definition):
        self.calls, self.stops, self.failures, self.expired = CallTable(), [], [], []
        self.definition = api_pb2.Function(function_name="f", **definition)
        self.task = Task("ta", "fu", "ap", enqueued_at=0.0, container=Signals(), ready=True, idle_since=0.0)
        self.deadlines = Deadlines(
            self.calls,
            lambda task, **how: self.stops.append(how),
            lambda task, result: self.failures.append(result.exception),
            self.expire,
            lambda task: "its last line",
        )

    def expire(self, one, result):
        self.expired.append((one.idx, result.status))
        self.calls.settle(one.id, result, now=0.0)

    def run(self, *indexes, at):
        call = self.calls.open(
            "fu", kind=1, invocation=1, parent_input_id="", now=0.0, retry_policy=api_pb2.FunctionRetryPolicy()
        )
        for idx in indexes:
            self.calls.add(call, idx, api_pb2.FunctionInput())
        return self.calls.take("fu", "ta", len(indexes), at)

    def at(self, now):
        self.deadlines.check(self.task, self.definition, now)
        return self


def test_an_input_is_timed_from_its_delivery_and_a_lone_one_ends_its_container():
    bench = Bench(timeout_secs=10)
    bench.run(0, at=100.0)
    assert bench.at(109.9).expired == []
    assert bench.at(110.1).expired == [(0, Status.GENERIC_STATUS_TIMEOUT)]
    assert bench.stops == [{"grace_s": ENDING_GRACE_S, "interrupt": True}]


def test_a_shared_container_is_told_to_break_off_the_late_input_alone():
    bench = Bench(timeout_secs=10, max_concurrent_inputs=4)
    (first,) = bench.run(0, at=100.0)
    bench.run(1, at=105.0)
    assert bench.at(111.0).expired == [(0, Status.GENERIC_STATUS_TIMEOUT)]
    assert bench.stops == []
    assert bench.task.cancels == {first.id}
    assert bench.at(111.0 + ENDING_GRACE_S - 0.1).stops == []
    assert bench.at(111.0 + ENDING_GRACE_S + 0.1).stops == [{"grace_s": 0}], "code that swallows it is killed"


def test_a_container_that_leaves_finishes_what_it_runs_and_then_has_its_grace():
    bench = Bench(timeout_secs=1000)
    (one,) = bench.run(0, at=0.0)
    bench.task.stopping = True
    assert bench.at(STOP_GRACE_S * 5).stops == []
    bench.calls.settle(one.id, api_pb2.GenericResult(status=Status.GENERIC_STATUS_SUCCESS), now=0.0)
    assert bench.at(200.0).stops == []
    assert bench.at(200.0 + STOP_GRACE_S - 0.1).stops == []
    assert bench.at(200.0 + STOP_GRACE_S + 0.1).stops == [{"grace_s": 0}]


def test_a_container_that_does_not_let_go_is_interrupted_again():
    bench = Bench()
    bench.task.ending["in"], bench.task.interrupt_at = 100.0, 10.0
    assert bench.at(9.0).task.container.interrupts == 0
    assert bench.at(10.1).task.container.interrupts == 1
    assert bench.at(10.2).task.container.interrupts == 1
    assert bench.at(10.2 + INTERRUPT_EVERY_S).task.container.interrupts == 2
    bench.task.ending.clear()
    assert bench.at(50.0).task.container.interrupts == 2


@pytest.mark.parametrize(("fields", "allowed"), [({"startup_timeout_secs": 7}, 7), ({"timeout_secs": 9}, 9), ({}, 300)])
def test_a_start_is_timed_by_its_own_limit_or_by_the_inputs_own(fields, allowed):
    bench = Bench(**fields)
    bench.task.ready, bench.task.began = False, 50.0
    assert bench.at(50.0 + allowed).failures == []
    (said,) = bench.at(50.1 + allowed).failures
    assert f"was not ready within its start-up time-out of {allowed} s. Its last log lines:\nits last line" in said
    assert bench.stops == [{"grace_s": 0}]


def test_a_container_is_idle_since_it_last_had_something_to_do():
    bench = Bench()
    (one,) = bench.run(0, at=1.0)
    assert bench.at(5.0).task.idle_since == 5.0
    bench.calls.settle(one.id, api_pb2.GenericResult(status=Status.GENERIC_STATUS_SUCCESS), now=5.0)
    assert bench.at(9.0).task.idle_since == 5.0


def test_failed_starts_wait_ever_longer_but_never_for_ever():
    pool = Pool("fu")
    delays = [pool.back_off(100.0) for _ in range(2000)]
    assert delays[:3] == [0.2, 0.4, 0.8]
    assert delays == sorted(delays)
    assert delays[-1] == 30.0
    assert pool.not_before == 130.0
