"""Retry and bisection, as what they do to any batch with any poisoned items in it."""

import math
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gpuserve.runtime.batch.plan import plan_batches
from gpuserve.runtime.batch.trials import Failure, FailureKind, RetryPolicy, Trial, after_failure

RAISED = Failure(FailureKind.RAISED, "ValueError", "no")
DIED = Failure(FailureKind.DIED, "RemoteError", "exited with code 3")
LOST = Failure(FailureKind.LOST, "ConnectionError", "away")


@settings(max_examples=50)
@given(st.integers(1, 200), st.data())
def test_only_the_poisoned_are_given_up_whatever_else_goes_wrong(size, data):
    poisoned = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    deadly = data.draw(st.sets(st.integers(0, size - 1), max_size=3))
    flaky = random.Random(data.draw(st.integers(0, 1000)))
    policy = RetryPolicy(max_attempts=data.draw(st.integers(1, 4)))
    waiting, answered, dead, runs = [Trial(0, tuple(range(size)))], Counter(), Counter(), 0
    while waiting:
        trial = waiting.pop()
        if flaky.random() < 0.2:
            failure = LOST
        elif deadly & set(trial.places):
            failure = DIED
        elif poisoned & set(trial.places):
            failure = RAISED
        else:
            answered.update(trial.places)
            continue
        runs += failure is not LOST
        verdict = after_failure(trial, failure, policy)
        waiting += verdict.trials
        dead.update(letter.place for letter in verdict.dead)

    assert set(dead) == poisoned | deadly
    assert set(answered) == set(range(size)) - poisoned - deadly
    assert set(answered.values()) | set(dead.values()) <= {1}
    most = (math.ceil(math.log2(size)) + 1 if size > 1 else 1) + policy.max_attempts
    assert runs <= len(poisoned | deadly) * most


def test_delays_grow_to_their_longest_and_being_away_costs_no_attempt():
    policy = RetryPolicy(max_attempts=5, first_delay_s=1, factor=2, max_delay_s=3)
    trial, delays = Trial(0, (7,)), []
    for _ in range(4):
        [trial] = after_failure(trial, RAISED, policy).trials
        delays.append(trial.delay_s)
        [waited] = after_failure(trial, LOST, policy).trials
        assert (waited.attempts, waited.alone) == (trial.attempts, trial.alone)
    assert delays == [1, 2, 3, 3]
    assert after_failure(trial, RAISED, policy).dead[0].attempts == 5


costs = st.lists(st.floats(0.1, 1000), max_size=300)


@given(costs, st.integers(1, 50), st.none() | st.floats(1, 2000), st.booleans())
def test_every_item_is_in_one_batch_and_no_batch_is_too_dear(costs, max_items, max_cost, padded):
    batches = plan_batches(costs, max_items=max_items, max_cost=max_cost, padded=padded)

    assert sorted(place for batch in batches for place in batch) == list(range(len(costs)))
    for batch in batches:
        assert len(batch) <= max_items
        cost = len(batch) * max(costs[one] for one in batch) if padded else sum(costs[one] for one in batch)
        assert max_cost is None or len(batch) == 1 or cost <= max_cost * (1 + 1e-9)
    dearest = [max(costs[one] for one in batch) for batch in batches]
    assert dearest == sorted(dearest, reverse=True)
