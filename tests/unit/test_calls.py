"""The call table loses no input, answers each once, and counts what waits, whatever the order of events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state import calls as module
from gpuserve.engine.state.calls import CallTable, InputStatus, Retry, failure

Status = api_pb2.GenericResult.GenericStatus
FUNCTIONS, TASKS = ("fu-a", "fu-b"), ("ta-1", "ta-2", "ta-3")
OF_TASK = dict(zip(TASKS, ("fu-a", "fu-a", "fu-b"), strict=True))
GOOD, BAD = api_pb2.GenericResult(status=Status.GENERIC_STATUS_SUCCESS), failure("no")
GONE = failure("gone", Status.GENERIC_STATUS_TERMINATED)


def begin(table, function="fu-a", retries=0, most_crashes=module.MOST_CRASHES, delay_ms=1000, most_ms=60_000):
    policy = api_pb2.FunctionRetryPolicy(
        retries=retries, initial_delay_ms=delay_ms, backoff_coefficient=2.0, max_delay_ms=most_ms
    )
    return table.open(
        function, kind=1, invocation=1, parent_input_id="", now=0.0, retry_policy=policy, most_crashes=most_crashes
    )


class Model:
    """One input as it should be."""

    def __init__(self, call, ident):
        self.call, self.id, self.place = call, ident, "queued"
        self.attempts = self.crashes = self.deliveries = 0


class CallMachine(RuleBasedStateMachine):
    """Calls, containers and deaths, against plain lists."""

    def __init__(self):
        super().__init__()
        self.table, self.calls, self.now = CallTable(), [], 0.0
        self.inputs, self.queues = {}, {function: [] for function in FUNCTIONS}

    def held(self, task):
        return [one for one in self.inputs.values() if one.place == task]

    def draw(self, data, place=None):
        """One of the inputs, by its number: ids are random, and a replay must choose the same."""
        known = [one for one in self.inputs.values() if place in {None, one.place}]
        return known[data.draw(st.integers(0, len(known) - 1))]

    def put(self, one, *, front=False):
        one.place = "queued"
        queue = self.queues[one.call.function_id]
        if one in queue:
            queue.remove(one)
        queue.insert(0 if front else len(queue), one)

    def leave(self, one):
        if one in self.queues[one.call.function_id]:
            self.queues[one.call.function_id].remove(one)

    def end(self, one, outcome):
        self.leave(one)
        one.place = "done"
        assert outcome is one.call

    @rule(function=st.sampled_from(FUNCTIONS), retries=st.integers(0, 2), crashes=st.integers(0, 2))
    def open(self, function, retries, crashes):
        self.calls.append(begin(self.table, function, retries, crashes))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), count=st.integers(1, 4))
    def add(self, data, count):
        call = self.calls[data.draw(st.integers(0, len(self.calls) - 1))]
        for idx in range(len(call.inputs), len(call.inputs) + count):
            added = self.table.add(call, idx, api_pb2.FunctionInput(args=b"x"))
            assert self.table.add(call, idx, api_pb2.FunctionInput()) is added
            self.inputs[added.id] = Model(call, added.id)
            self.put(self.inputs[added.id])

    @rule(data=st.data(), task=st.sampled_from(TASKS), most=st.integers(1, 4))
    def take(self, data, task, most):
        function, held = OF_TASK[task], self.held(task)
        places = data.draw(st.sets(st.integers(0, 5), max_size=2))
        barred = {one.id for place, one in enumerate(self.queues[function]) if place in places}
        self.now += 1
        expected = []
        if not any(one.crashes for one in held):
            for one in self.queues[function]:
                if one.id in barred:
                    continue
                if len(expected) == most or (one.crashes and (held or expected)):
                    break
                expected.append(one)
                if one.crashes:
                    break
        taken = self.table.take(function, task, most, self.now, barred)
        assert [one.id for one in taken] == [one.id for one in expected]
        for one, real in zip(expected, taken, strict=True):
            self.leave(one)
            one.place, one.deliveries = task, one.deliveries + 1
            assert (real.delivered_at, real.task_id, real.deliveries) == (self.now, task, one.deliveries)

    @precondition(lambda self: self.inputs)
    @rule(data=st.data(), result=st.sampled_from([GOOD, BAD, GONE]), older=st.booleans(), task=st.sampled_from(TASKS))
    def put_output(self, data, result, older, task):
        one = self.draw(data)
        delivery = one.deliveries - 1 - older
        outcome = self.table.settle(one.id, result, now=self.now, task_id=task, delivery=delivery)
        if one.place != task or older:
            assert outcome is None
        elif result is BAD and one.attempts < one.call.retry_policy.retries and not one.call.cancelled:
            assert outcome == Retry(one.id, 2.0**one.attempts)
            one.place, one.attempts = "delayed", one.attempts + 1
        else:
            self.end(one, outcome)

    @precondition(lambda self: any(one.place == "delayed" for one in self.inputs.values()))
    @rule(data=st.data())
    def delay_is_over(self, data):
        one = self.draw(data, "delayed")
        assert self.table.requeue(one.id).id == one.id
        self.put(one)

    @rule(task=st.sampled_from(TASKS), blame=st.booleans())
    def lose(self, task, blame):
        held = [self.inputs[ident] for ident in self.table.running.get(task, ())]
        assert held == sorted(held, key=lambda one: self.table.inputs[one.id].delivered_at)
        again, spent = self.table.lose(task, blame=blame)
        for one in reversed(held):
            one.crashes += blame
            if one.crashes <= one.call.most_crashes:
                self.put(one, front=True)
        tired = [one for one in held if one.place == task]
        assert [one.id for one in spent] == [one.id for one in tired]
        assert [one.id for one in again] == [one.id for one in held if one.place == "queued"]
        for one in tired:
            self.end(one, self.table.settle(one.id, BAD, now=self.now, may_retry=False))

    @precondition(lambda self: self.inputs)
    @rule(data=st.data(), task=st.sampled_from(TASKS))
    def hand_back(self, data, task):
        one = self.draw(data)
        back = self.table.hand_back(one.id, task)
        if one.place == task and one.crashes < one.call.most_crashes:
            one.crashes += 1
            self.put(one, front=True)
            assert back is not None
        else:
            assert back is None

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def cancel(self, data):
        call = self.calls[data.draw(st.integers(0, len(self.calls) - 1))]
        call.cancelled = True
        for real in self.table.unfinished_of(call):
            self.end(self.inputs[real.id], self.table.settle(real.id, GONE, now=self.now, may_retry=False))

    @precondition(lambda self: any(call.inputs and not call.unfinished for call in self.calls))
    @rule(data=st.data())
    def forget(self, data):
        finished = [call for call in self.calls if call.inputs and not call.unfinished]
        call = finished[data.draw(st.integers(0, len(finished) - 1))]
        self.table.forget(call.id)
        self.calls.remove(call)
        self.inputs = {ident: one for ident, one in self.inputs.items() if one.call is not call}

    @invariant()
    def every_input_is_in_one_place(self):
        assert set(self.table.inputs) == set(self.inputs)
        for one in self.inputs.values():
            real = self.table.inputs[one.id]
            status = {"queued": InputStatus.QUEUED, "delayed": InputStatus.QUEUED, "done": InputStatus.DONE}
            assert real.status is status.get(one.place, InputStatus.RUNNING)
            assert real.delayed is (one.place == "delayed")
        for task in TASKS:
            assert set(self.table.running.get(task, ())) == {one.id for one in self.held(task)}

    @invariant()
    def what_waits_is_counted(self):
        for function, queue in self.queues.items():
            assert self.table.queued(function) == len(queue)
            assert self.table.suspects(function) == sum(one.crashes > 0 for one in queue)
            left = [one for one in self.inputs.values() if one.place != "done" and one.call.function_id == function]
            assert self.table.unfinished(function) == len(left)
            waiting = {one.id for one in left if one.place in {"queued", "delayed"}}
            assert {one.id for one in self.table.queued_of([function])} == waiting

    @invariant()
    def every_input_is_answered_once(self):
        for call in self.calls:
            done = {one.id for one in self.inputs.values() if one.call is call and one.place == "done"}
            assert sorted(output.input_id for output in call.outputs) == sorted(done)
            assert {output.idx for output in call.outputs} == set(call.by_idx)
            assert call.unfinished == len(call.inputs) - len(done)

    @invariant()
    def an_input_whose_container_died_runs_alone(self):
        for task in TASKS:
            held = self.held(task)
            assert len(held) <= 1 or not any(one.crashes for one in held)

    def teardown(self):
        for task in TASKS:
            self.lose(task, blame=False)
        for real in list(self.table.inputs.values()):
            if real.delayed:
                self.table.requeue(real.id)
        for task in TASKS:
            while taken := self.table.take(OF_TASK[task], task, 3, self.now):
                for one in taken:
                    self.table.settle(one.id, GOOD, now=self.now)
        assert [call.unfinished for call in self.calls] == [0] * len(self.calls)


TestCallTable = CallMachine.TestCase
TestCallTable.settings = settings(max_examples=60, stateful_step_count=40)


@given(attempts=st.integers(0, 2000), initial=st.integers(0, 60_000), most=st.integers(0, 60_000))
def test_the_delay_of_a_retry_never_overflows_and_never_passes_its_maximum(attempts, initial, most):
    policy = api_pb2.FunctionRetryPolicy(initial_delay_ms=initial, max_delay_ms=most, backoff_coefficient=10.0)
    delay = module._delay_ms(policy, attempts)
    assert 0 <= delay <= (most or 3_600_000)


def finished(table, size=10, now=0.0, blob=""):
    call = begin(table)
    one = table.add(call, 0, api_pb2.FunctionInput(args_blob_id=blob and f"{blob}-in"))
    result = api_pb2.GenericResult(status=Status.GENERIC_STATUS_SUCCESS, data=b"x" * size)
    if blob:
        result.data_blob_id = f"{blob}-out"
    table.take("fu-a", "ta", 1, now)
    table.settle(one.id, result, now=now)
    return call


def test_finished_calls_are_kept_a_week_and_then_named_for_dropping():
    table = CallTable()
    old, young = finished(table, blob="bl-1"), finished(table, now=100.0)
    open_call = begin(table)
    table.add(open_call, 0, api_pb2.FunctionInput())

    assert table.outdated(7 * 24 * 3600.0) == []
    assert table.outdated(7 * 24 * 3600.0 + 1) == [old.id]
    assert table.outdated(1e9) == [old.id, young.id]
    assert table.expire(old.id) == ["bl-1-in", "bl-1-out"]
    assert table.is_expired(old.id)
    assert not table.is_expired(young.id)


def test_too_many_finished_calls_or_too_many_bytes_let_the_oldest_go(monkeypatch):
    table = CallTable()
    calls = [finished(table, size=1000) for _ in range(5)]
    monkeypatch.setattr(module, "_MOST_FINISHED", 3)
    assert table.outdated(0.0) == [one.id for one in calls[:2]]

    monkeypatch.setattr(module, "_MOST_FINISHED", 100)
    monkeypatch.setattr(module, "_MOST_FINISHED_BYTES", 2500)
    assert table.outdated(0.0) == [one.id for one in calls[:3]]
    table.release(calls[4], 1)
    assert table.outdated(0.0) == [one.id for one in calls[:2]]


def test_a_call_that_gets_more_inputs_is_not_finished_any_more():
    table = CallTable()
    call = finished(table)
    table.add(call, 1, api_pb2.FunctionInput())
    assert table.outdated(1e9) == []


def test_an_output_that_its_reader_has_is_let_go_and_the_others_stay():
    table = CallTable()
    call = begin(table)
    for idx in range(3):
        table.add(call, idx, api_pb2.FunctionInput())
    for one in table.take("fu-a", "ta", 3, 0.0):
        data = api_pb2.GenericResult(status=Status.GENERIC_STATUS_SUCCESS, data=b"value")
        table.settle(one.id, data, now=0.0)
    table.release(call, 2)
    table.release(call, 1)
    assert [output.result.data for output in call.outputs] == [b"", b"", b"value"]
    assert all(output.result.status == Status.GENERIC_STATUS_SUCCESS for output in call.outputs)


@pytest.mark.parametrize("crashes", [0, 2])
def test_an_input_is_run_again_only_as_often_as_its_call_allows(crashes):
    table = CallTable()
    call = begin(table, most_crashes=crashes)
    one = table.add(call, 0, api_pb2.FunctionInput())
    deaths = 0
    while not call.outputs:
        table.take("fu-a", f"ta-{deaths}", 1, 0.0)
        again, spent = table.lose(f"ta-{deaths}", blame=True)
        deaths += 1
        assert [*again, *spent] == [one]
        if spent:
            table.settle(one.id, BAD, now=0.0, may_retry=False)
    assert deaths == crashes + 1
