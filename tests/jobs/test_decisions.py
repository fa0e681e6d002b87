"""What becomes of times that come due: every overlap policy, catch-up policy and outage, with exact counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuserve.runtime.jobs.decisions import Situation, Started, decide

NOW = datetime(2026, 6, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
WINDOW = timedelta(hours=6)
OUTAGES = {"90 s": timedelta(seconds=90), "24 h": timedelta(hours=24)}
OVERLAPS, CATCH_UPS = ("skip", "queue_one", "allow", "cancel_other"), ("none", "one", "all")

# A job of every minute, looked at again after an outage: started, waiting, skipped, missed; with nothing running.
IDLE = {
    ("skip", "none", "90 s"): (1, 0, 0, 1),
    ("skip", "none", "24 h"): (1, 0, 0, 1439),
    ("skip", "one", "90 s"): (1, 0, 0, 1),
    ("skip", "one", "24 h"): (1, 0, 0, 1439),
    ("skip", "all", "90 s"): (1, 1, 0, 0),
    ("skip", "all", "24 h"): (1, 360, 0, 1079),
    ("queue_one", "none", "90 s"): (1, 0, 0, 1),
    ("queue_one", "none", "24 h"): (1, 0, 0, 1439),
    ("queue_one", "one", "90 s"): (1, 0, 0, 1),
    ("queue_one", "one", "24 h"): (1, 0, 0, 1439),
    ("queue_one", "all", "90 s"): (1, 1, 0, 0),
    ("queue_one", "all", "24 h"): (1, 360, 0, 1079),
    ("allow", "none", "90 s"): (1, 0, 0, 1),
    ("allow", "none", "24 h"): (1, 0, 0, 1439),
    ("allow", "one", "90 s"): (1, 0, 0, 1),
    ("allow", "one", "24 h"): (1, 0, 0, 1439),
    ("allow", "all", "90 s"): (2, 0, 0, 0),
    ("allow", "all", "24 h"): (361, 0, 0, 1079),
    ("cancel_other", "none", "90 s"): (1, 0, 0, 1),
    ("cancel_other", "none", "24 h"): (1, 0, 0, 1439),
    ("cancel_other", "one", "90 s"): (1, 0, 0, 1),
    ("cancel_other", "one", "24 h"): (1, 0, 0, 1439),
    ("cancel_other", "all", "90 s"): (1, 0, 1, 0),
    ("cancel_other", "all", "24 h"): (1, 0, 360, 1079),
}
# The same while a run is at work.
BUSY = {
    ("skip", "none"): {"90 s": (0, 0, 1, 1), "24 h": (0, 0, 1, 1439)},
    ("skip", "one"): {"90 s": (0, 0, 1, 1), "24 h": (0, 0, 1, 1439)},
    ("skip", "all"): {"90 s": (0, 1, 1, 0), "24 h": (0, 360, 1, 1079)},
    ("queue_one", "none"): {"90 s": (0, 1, 0, 1), "24 h": (0, 1, 0, 1439)},
    ("queue_one", "one"): {"90 s": (0, 1, 0, 1), "24 h": (0, 1, 0, 1439)},
    ("queue_one", "all"): {"90 s": (0, 2, 0, 0), "24 h": (0, 361, 0, 1079)},
}


def minutes(outage):
    return tuple(NOW - MINUTE * back for back in reversed(range(int(outage / MINUTE) + (outage < timedelta(hours=1)))))


def counts(decision):
    missed = sum(one.missed for one in decision.skip)
    return len(decision.start), len(decision.wait), len(decision.skip) - missed, missed


@pytest.mark.parametrize(("overlap", "catch_up", "outage"), IDLE)
def test_an_outage_leaves_exactly_what_the_policies_say(overlap, catch_up, outage):
    due = minutes(OUTAGES[outage])
    assert len(due) == {"90 s": 2, "24 h": 1440}[outage]
    idle = decide(overlap, catch_up, WINDOW, Situation(due=due, now=NOW))
    assert counts(idle) == IDLE[overlap, catch_up, outage]
    busy = decide(overlap, catch_up, WINDOW, Situation(due=due, now=NOW, active=1))
    expected = BUSY.get((overlap, catch_up), {}).get(outage, IDLE[overlap, catch_up, outage])
    assert counts(busy) == expected
    assert busy.cancel == (overlap == "cancel_other")


def test_the_matrix_is_whole():
    assert set(IDLE) == {(a, b, c) for a in OVERLAPS for b in CATCH_UPS for c in OUTAGES}


@given(
    overlap=st.sampled_from(OVERLAPS),
    catch_up=st.sampled_from(CATCH_UPS),
    due=st.lists(st.integers(0, 2000), unique=True, max_size=30),
    on_time=st.booleans(),
    active=st.integers(0, 3),
    waiting=st.lists(st.integers(2001, 2100), unique=True, max_size=3),
    paused=st.booleans(),
)
def test_every_time_is_decided_once_and_no_two_runs_overlap_unless_allowed(
    overlap, catch_up, due, on_time, active, waiting, paused
):
    times = tuple(NOW - MINUTE * back for back in sorted(due, reverse=True))
    queue = tuple(Started(NOW - MINUTE * back, "catch_up") for back in sorted(waiting, reverse=True))
    situation = Situation(times, NOW, on_time and bool(times), active, queue, paused)
    decision = decide(overlap, catch_up, WINDOW, situation)
    told = [one.nominal for part in (decision.start, decision.wait, decision.skip) for one in part]
    assert len(told) == len(set(told))
    assert set(times) <= set(told) <= {*times, *(one.nominal for one in queue)}
    assert [one.nominal for one in decision.start] == sorted(one.nominal for one in decision.start)
    if paused:
        assert not decision.start
    if overlap in {"skip", "queue_one"}:
        assert len(decision.start) + bool(active) <= 1
    if overlap == "cancel_other":
        assert len(decision.start) <= 1
        assert decision.cancel == bool(decision.start and active and decision.start[0].nominal in times)


def test_what_waits_starts_when_the_run_before_it_has_ended():
    queue = (Started(NOW - MINUTE, "backfill"), Started(NOW, "backfill"))
    ended = decide("skip", "none", WINDOW, Situation((), NOW, waiting=queue))
    assert ended.start == queue[:1]
    assert decide("skip", "none", WINDOW, Situation((), NOW, active=1, waiting=queue)).start == ()
