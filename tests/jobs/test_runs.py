"""Runs of a job on a clock that the test sets: history in a folder, leases in memory, calls that are only noted."""

from __future__ import annotations

import json
import os
import pickle
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest

import gpuserve
from gpuserve.runtime.jobs.clock import backfill, look, start_by_hand
from gpuserve.runtime.jobs.history import History
from gpuserve.runtime.jobs.plan import JobPlan, parse_time
from gpuserve.runtime.jobs.running import JobPorts, run_job
from gpuserve.runtime.lease import FencedLease, LocalEntries
from gpuserve.runtime.ports import PlainFolder

START = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOURLY = gpuserve.Schedule.cron("0 * * * *")


class Calls:
    """Modal's calls: what was started lives until it is run or killed."""

    def __init__(self):
        self.started, self.alive, self.cancelled, self.now = [], set(), [], ""

    def current(self):
        return self.now

    def spawn(self, app, function, *arguments):
        self.started.append(arguments)
        self.alive.add(f"fc-{len(self.started)}")
        return f"fc-{len(self.started)}"

    def is_alive(self, call_id):
        return call_id in self.alive

    def cancel(self, call_id):
        self.cancelled.append(call_id)
        self.alive.discard(call_id)


class World:
    def __init__(self, folder, **policy):
        self.at, self.calls, self.alerts, self.ran = START, Calls(), [], []
        self.plan = JobPlan("reports", "Nightly", **{"schedule": HOURLY, "clock": "tick", **policy})
        self.history = History(folder, PlainFolder(), "reports", "Nightly")
        self.ports = JobPorts(
            self.history,
            LocalEntries(),
            self.calls,
            lambda kind, text: self.alerts.append((kind, text)),
            clock=self.seconds,
        )

    def seconds(self):
        return self.at.timestamp()

    def look(self, why="tick", **later):
        self.at += timedelta(**later)
        return look(self.plan, self.ports, why)

    def run(self, number=None, body=None, **options):
        """Run a call that was started, or one by hand."""
        if number is None:
            return run_job(self.plan, body or self.ran.append, self.ports, **options)
        self.calls.now = f"fc-{number}"
        at, trigger, *force = self.calls.started[number - 1]
        try:
            return run_job(
                self.plan, body or self.ran.append, self.ports, at=at, trigger=trigger, force=bool(force and force[0])
            )
        finally:
            self.calls.alive.discard(f"fc-{number}")
            self.calls.now = ""

    def states(self):
        return [(one.nominal.hour, one.state) for one in reversed(self.history.newest(100))]


@pytest.fixture
def world(tmp_path):
    return lambda **policy: World(tmp_path, **policy)


def fails(_run):
    raise ValueError("no data today")


def test_a_run_is_told_its_time_its_key_its_fence_and_why(world):
    here = world(schedule=gpuserve.Schedule.cron("30 12 * * *", zone="Europe/Berlin"))
    here.look()
    here.look(hours=22)
    assert here.calls.started == []
    here.at = datetime(2026, 6, 2, 10, 30, 20, tzinfo=UTC)
    assert here.look().started == ("2026-06-02T10:30:00Z",)
    outcome = here.run(1)
    [run] = here.ran
    assert run.nominal_time.isoformat() == "2026-06-02T12:30:00+02:00"
    assert run.idempotency_key == "reports/Nightly/2026-06-02T10:30:00Z"
    assert (run.trigger, run.attempt, run.fence, run.is_current) == ("schedule", 1, 1, True)
    assert (outcome.state, outcome.fence) == ("succeeded", 1)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_a_time_that_is_done_is_not_done_again_unless_it_is_forced(world):
    here = world()
    assert here.run(at="2026-06-01T12:00").state == "succeeded"
    assert here.run(at="2026-06-01T12:00").state == "already_done"
    assert here.run().state == "already_done"
    forced = here.run(at="2026-06-01T12:00", force=True)
    assert (forced.state, forced.attempt, forced.fence) == ("succeeded", 2, 2)
    assert len(here.ran) == 2
    assert here.ran[0].idempotency_key == here.ran[1].idempotency_key


def test_two_runs_for_one_time_do_not_meet(world):
    here = world()
    inside, outcomes, go = threading.Event(), [], threading.Event()

    def slow(_run):
        inside.set()
        go.wait(10)

    first = threading.Thread(target=lambda: outcomes.append(here.run(body=slow, at="2026-06-01T12:00")))
    first.start()
    inside.wait(10)
    assert here.run(at="2026-06-01T12:00").state == "already_running"
    assert here.run(at="2026-06-01T11:00").state == "succeeded"
    go.set()
    first.join(10)
    assert outcomes[0].state == "succeeded"
    assert len(here.ran) == 1


def test_a_container_that_is_started_again_for_its_call_takes_its_own_lease_over(world):
    here = world()
    here.calls.now = "fc-7"
    lease = here.ports.lease
    grant = lease.acquire("run/reports/Nightly/2026-06-01T12:00:00Z", "fc-7")
    assert here.run(at="2026-06-01T12:00").state == "succeeded"
    assert lease.renew(grant) is False


def test_a_run_that_was_taken_over_learns_it_and_its_fence_is_the_smaller(world):
    here = world()
    fences = []

    def stalled(run):
        fences.append(run.fence)
        here.at += timedelta(minutes=5)  # its lease is stale
        assert here.run(body=lambda other: fences.append(other.fence), at="2026-06-01T12:00").state == "succeeded"
        run._lost.set()  # what the renewal finds at its next turn
        run.check()

    with pytest.raises(gpuserve.LeaseLostError, match="taken over"):
        here.run(body=stalled, at="2026-06-01T12:00")
    assert fences == [1, 2]


def test_a_lease_has_one_holder_whoever_asks_at_once():
    for _ in range(20):
        lease, granted = FencedLease(LocalEntries()), []
        gate = threading.Barrier(8)

        def ask(number, lease=lease, granted=granted, gate=gate):
            gate.wait()
            grant = lease.acquire("k", f"owner-{number}")
            if grant is not None:
                granted.append(grant)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert len(granted) == 1


def test_fences_grow_also_when_the_dict_has_forgotten(world):
    here = world()
    assert [here.run(at=f"2026-06-01T{hour:02}:00").fence for hour in (8, 9, 10)] == [1, 2, 3]
    here.ports.leases._values.clear()  # seven idle days
    assert here.run(at="2026-06-01T11:00").fence == 4


def test_a_failure_is_tried_again_and_told_once_and_so_is_recovery(world):
    here = world(retries=1)
    here.look()
    here.look(hours=1, seconds=5)
    with pytest.raises(ValueError, match="no data"):
        here.run(1, fails)
    assert here.alerts == []
    here.calls.alive.add("fc-1")  # Modal tries it again
    here.look(minutes=1)
    assert here.states()[-1] == (13, "failed")
    with pytest.raises(ValueError, match="no data"):
        here.run(1, fails)
    [(kind, text)] = here.alerts
    assert kind == "failed"
    assert "failed at attempt 2: ValueError: no data today" in text
    here.look(hours=1)
    here.run(2)
    assert [kind for kind, _ in here.alerts] == ["failed", "recovered"]
    assert here.states() == [(13, "failed"), (14, "succeeded")]


def test_a_run_that_is_broken_off_has_failed_and_the_next_that_succeeds_tells_of_recovery(world):
    class TimedOutError(BaseException):
        """What Modal raises in a run for a time-out or a cancellation."""

    def overruns(_run):
        raise TimedOutError

    here = world()
    here.look()
    here.look(hours=1)
    with pytest.raises(TimedOutError):
        here.run(1, overruns)
    here.look(hours=1)
    here.run(2)
    assert here.states() == [(13, "failed"), (14, "succeeded")]
    assert [kind for kind, _ in here.alerts] == ["failed", "recovered"]
    assert "it was broken off (TimedOutError)" in here.alerts[0][1]


def test_a_container_that_dies_without_a_word_is_told(world):
    here = world()
    here.look()
    here.look(hours=1)
    here.calls.alive.clear()
    here.look(minutes=1)
    assert [kind for kind, _ in here.alerts] == ["failed"]
    assert here.states() == [(13, "failed")]
    here.look(minutes=1)
    assert len(here.alerts) == 1


def test_a_time_that_comes_while_a_run_is_at_work_is_skipped_or_waits_or_takes_its_place(world, tmp_path):
    skipping = world()
    skipping.look()
    skipping.look(hours=1)
    skipping.look(hours=1)
    assert skipping.states() == [(13, "queued"), (14, "skipped")]

    queueing = World(tmp_path / "queue", overlap="queue_one")
    queueing.look()
    for _ in range(3):
        queueing.look(hours=1)
    assert queueing.states() == [(13, "queued"), (14, "waiting"), (15, "skipped")]
    queueing.run(1)
    queueing.look("ended")
    assert [at for at, _ in queueing.calls.started] == ["2026-06-01T13:00:00Z", "2026-06-01T14:00:00Z"]

    replacing = World(tmp_path / "replace", overlap="cancel_other")
    replacing.look()
    replacing.look(hours=1)
    replacing.look(hours=1)
    assert replacing.calls.cancelled == ["fc-1"]
    assert replacing.states() == [(13, "cancelled"), (14, "queued")]
    assert replacing.alerts == []


def test_after_an_outage_what_was_missed_is_told_and_caught_up_with_one_after_another(world, tmp_path):
    none = world()
    none.look()
    none.look(hours=1)
    none.run(1)
    none.look(hours=5)
    assert none.states() == [(13, "succeeded"), (17, "missed"), (18, "queued")]
    [(kind, text)] = none.alerts
    assert kind == "missed"
    assert "4 times from 2026-06-01T14:00:00Z to 2026-06-01T17:00:00Z" in text

    everything = World(tmp_path / "all", catch_up="all", catch_up_window_s=3 * 3600 + 60)
    everything.look()
    everything.look(hours=6, minutes=30)
    started = []
    for number in range(1, 4):
        everything.run(number)
        everything.look("ended")
        started = [at[11:13] for at, _ in everything.calls.started]
    assert started == ["16", "17", "18"]
    assert {trigger for _, trigger in everything.calls.started} == {"catch_up"}
    assert [kind for kind, _ in everything.alerts] == ["missed"]


def test_a_native_clock_takes_the_latest_time_however_late_it_is_fired(world):
    here = world(clock="native")
    assert here.look("fired", minutes=59).started == ("2026-06-01T12:00:00Z",)
    here.run(1)
    assert here.look("fired").started == ()
    assert here.look("fired", minutes=31).started == ("2026-06-01T13:00:00Z",)


@pytest.mark.parametrize(("clock", "why"), [("native", "fired"), ("tick", "tick")])
def test_a_clock_that_was_ahead_does_not_silence_a_job_once_it_is_right(world, clock, why):
    here = world(clock=clock, overlap="allow")
    here.look(why, days=365)
    here.look(why, hours=1)  # 13:00, a year ahead
    here.look(why, days=-365, hours=1)
    assert here.calls.started[-1][0] == "2026-06-01T14:00:00Z"
    known = len(here.calls.started)
    assert here.look(why, minutes=1).started == ()
    assert here.look(why, minutes=59).started == ("2026-06-01T15:00:00Z",)
    assert here.look(why, minutes=-60).started == ()  # 14:00 again
    assert len(here.calls.started) == known + 1
    assert here.alerts == []


def test_a_paused_job_starts_nothing_and_its_times_can_be_filled_in(world):
    here = world()
    here.look()
    here.history.pause(here.ports.now())
    for _ in range(3):
        here.look(hours=1)
    here.history.resume()
    assert here.states() == [(13, "skipped"), (14, "skipped"), (15, "skipped")]
    assert backfill(here.plan, here.ports, START + timedelta(hours=1), here.ports.now()) == (3, 0)
    for number in range(1, 4):
        here.run(number)
        here.look("ended")
    assert here.states() == [(13, "succeeded"), (14, "succeeded"), (15, "succeeded")]
    assert {run.trigger for run in here.ran} == {"backfill"}
    assert backfill(here.plan, here.ports, START + timedelta(hours=1), here.ports.now()) == (0, 3)


def test_a_run_by_hand_before_its_clock_looks_is_the_run_of_that_time(world):
    here = world()
    here.look()
    here.at += timedelta(hours=1)
    start_by_hand(here.plan, here.ports, here.ports.now(), force=False)
    assert here.run(1).state == "succeeded"
    assert here.look(seconds=20).started == ()


def test_another_schedule_does_not_make_its_older_times_missed(world, tmp_path):
    here = world()
    here.look()
    here.look(hours=1)
    here.run(1)
    here.plan = JobPlan("reports", "Nightly", schedule=gpuserve.Schedule.cron("*/5 * * * *"), clock="tick")
    here.look(hours=3)
    here.look(minutes=5)
    assert here.alerts == []
    assert here.states()[-1] == (16, "queued")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-06-01T12:30", "the nearest are 2026-06-01T12:00:00+00:00 and 2026-06-01T13:00:00+00:00"),
        ("2026-06-01T14:00", "lies ahead"),
        ("yesterday", "a time such as '2026-11-25T02:00' is allowed"),
    ],
)
def test_a_time_that_is_none_of_the_schedules_is_refused_with_the_nearest(text, why):
    with pytest.raises(gpuserve.JobError, match=re.escape(why)):
        parse_time(text, HOURLY, lambda: START + timedelta(hours=1))


def test_a_disk_that_takes_a_few_bytes_a_time_keeps_each_line_whole(world, monkeypatch):
    here = world()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    here.run(at="2026-06-01T12:00")
    assert here.run(at="2026-06-01T12:00").state == "already_done"
    [path] = here.history._folder.glob("*/*run*")
    assert [json.loads(line)["state"] for line in path.read_text().splitlines()] == ["running", "succeeded"]


def test_a_line_that_a_kill_cut_off_is_no_line_and_old_days_are_removed(world):
    here = world()
    here.look()
    here.look(hours=1)
    here.run(1)
    path = next(here.history._folder.glob("*/*run*"))
    begun, _ended = path.read_text().splitlines()
    assert json.loads(begun)["state"] == "running"
    path.write_text(begun + '\n{"nominal": "2026-0')
    fresh = History(here.history._folder.parents[1], PlainFolder(), "reports", "Nightly")
    assert fresh.newest(1)[0].state == "running"
    assert fresh.prune((START + timedelta(days=1)).date()) == 1
    assert fresh.newest(1) == []
