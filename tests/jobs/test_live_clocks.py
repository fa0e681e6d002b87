"""R5 on the live engine: the clock on the wall is changed, the machine sleeps, the engine is killed at due times."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.wide, pytest.mark.timeout(600)]  # a busy machine takes two minutes for five kills


def _load(name):
    """A module beside this one; tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


clock, apps = _load("changed_clock"), _load("scheduled_apps")
moment, told, count = clock.moment, clock.told, clock.count


@pytest.fixture(scope="module")
def library(tmp_path_factory, debian_packages):
    if shutil.which("gcc") is None:
        debian_packages("gcc", "libc6-dev")
    return clock.build_clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def machine(tmp_path, library, modal_forks, request):
    made = clock.Machine(tmp_path, library, modal_forks, moment(request.param))
    yield made
    made.close()
    assert made.remains() == set()


def nominal_of(machine, name, since=0.0):
    return [told(one.nominal) for one in machine.starts() if one.name == name and one.nominal >= since]


def no_start_is_doubled(machine):
    """Each run that was heard of is one of the starts that are written down, and no start is there twice."""
    starts, runs = machine.starts(), machine.recorder.runs
    assert len({(one.name, one.nominal) for one in starts}) == len(starts)
    written, heard = Counter(one.name for one in starts), Counter(one.name for one in runs if not one.nominal)
    assert {name: number for name, number in heard.items() if number > written[name]} == {}
    assert len({one.call for one in runs}) == len(runs)
    jobs = Counter(one.nominal for one in runs if one.nominal)
    assert [one for one, times in jobs.items() if times > 1] == []


@pytest.mark.parametrize("machine", ["2026-03-28T12:00:10"], indirect=True)
def test_a_night_that_skips_an_hour_runs_what_was_due_in_it_once_right_after(machine):
    machine.start().deploy("plain", apps.PLAIN)
    machine.stop()
    midnight = moment("2026-03-29T00:59:58")  # 01:59:58 in Berlin
    machine.set(midnight)
    machine.start()
    # the hour before is made up for as well, unless the engine is only there once the clock has jumped
    runs = machine.recorder.wait(
        lambda runs: {"half", "two", "hourly", "minutely"} <= {one.name for one in runs if one.at >= midnight + 2}
    )
    assert {one.name for one in runs if one.at - midnight < 60} >= {"half", "two", "hourly", "minutely"}
    machine.set(moment("2026-03-29T23:59:58"))
    machine.recorder.wait(lambda runs: count(runs, "two") > 1)
    machine.set(moment("2026-03-30T00:29:58"))
    machine.recorder.wait(lambda runs: count(runs, "half") > 1)
    machine.stop()
    assert nominal_of(machine, "half") == ["2026-03-29T01:00:00", "2026-03-30T00:30:00"]
    assert nominal_of(machine, "two") == ["2026-03-29T01:00:00", "2026-03-30T00:00:00"]
    no_start_is_doubled(machine)


@pytest.mark.parametrize("machine", ["2026-10-24T12:00:10"], indirect=True)
def test_a_night_that_has_an_hour_twice_runs_what_is_due_in_it_once(machine):
    machine.start().deploy("plain", apps.PLAIN)
    machine.stop()
    machine.set(moment("2026-10-24T23:59:58"))  # 01:59:58 in Berlin
    machine.start()
    machine.recorder.wait(lambda runs: count(runs, "two"))
    for at, name in (("00:29:58", "half"), ("00:59:58", "hourly"), ("01:29:58", "minutely")):
        known = len(machine.recorder.runs)
        machine.set(moment(f"2026-10-25T{at}"))
        boundary = machine.now() + 2
        machine.recorder.wait(
            lambda runs, name=name, b=boundary: any(r.name == name and r.at >= b for r in runs), since=known
        )
    machine.stop()
    assert nominal_of(machine, "two") == ["2026-10-25T00:00:00"]
    assert nominal_of(machine, "half") == ["2026-10-25T00:30:00"]
    hours = nominal_of(machine, "hourly", moment("2026-10-25T00:00:00"))
    assert hours == ["2026-10-25T00:00:00", "2026-10-25T01:00:00"]  # 02:00 in summer time, and 02:00 in winter time
    no_start_is_doubled(machine)


EVERY_MINUTE = ("minutely", "Native", "Ticked")
JUMPS = {7200: "ahead by 2:00:00", -7200: "back by 2:00:00", 86_400: "ahead by 1 day, 0:00:00",
         -86_400: "back by 1 day, 0:00:00"}  # fmt: skip


def after_a_change(machine, change):
    """Change the clock some seconds before a minute, and wait until what is due at that minute, which is returned, ran
    within it; a run that began before the change, and is heard of after it, has a time of the clock as it was."""
    machine.approach_a_minute()
    known = len(machine.recorder.runs)
    change()
    minute = (machine.now() // 60 + 1) * 60
    machine.recorder.wait(
        lambda runs: {one.name for one in runs if minute <= one.at < minute + 60} >= set(EVERY_MINUTE), since=known
    )
    return minute


@pytest.mark.parametrize("machine", ["2026-06-01T12:00:10"], indirect=True)
def test_a_clock_that_jumps_and_a_machine_that_sleeps_bring_no_burst_and_silence_nothing(machine):
    machine.start().deploy("plain", apps.PLAIN)
    machine.deploy("jobs", apps.JOBS)
    machine.approach_a_minute()
    machine.recorder.wait(lambda runs: count(runs, "Native"))  # for a job that ticks, the first look is its beginning
    after_a_change(machine, lambda: None)
    minutes = {after_a_change(machine, lambda seconds=seconds: machine.jump(seconds)): seconds for seconds in JUMPS}

    def sleep():
        resume = machine.suspend()
        machine.jump(600)
        machine.recorder.linger(1.0)
        resume()

    minutes[after_a_change(machine, sleep)] = 600
    machine.stop()
    assert [machine.jumps().count(line) for line in (*JUMPS.values(), "ahead by 0:10:00")] == [1] * 5
    no_start_is_doubled(machine)
    for minute, seconds in minutes.items():
        burst = Counter(one.name for one in machine.starts() if minute - 16 < one.at < minute)
        assert max(burst.values(), default=0) == (seconds > 0), (seconds, burst)
        due = {one.name: one.at - minute for one in machine.starts() if one.nominal == minute}
        print(f"{seconds:+} s: {dict(burst)} at once, then {due}")
        assert max(due.values()) < 60


@pytest.mark.parametrize("machine", ["2025-01-01T12:00:10", "2028-01-01T12:00:10"], indirect=True)
def test_a_client_and_an_engine_whose_clocks_are_years_apart_work_together(machine):
    machine.start()
    (machine.folder / "apart.py").write_text(apps.APART)
    assert "all is well" in machine.modal("run", "apart.py")


def kill_at_due_times(machine, seed, kills):
    """Kill the engine so often, and start it again; what was started and what ran in each of its lives."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    machine.start().deploy("periods", apps.PERIODS)
    machine.deploy("seconds", apps.SECONDS)
    ends = []
    for _ in range(kills):
        machine.recorder.linger(dice.uniform(0.0, 2.5))
        machine.kill()
        assert machine.remains() == set()
        ends.append((machine.recorder.mark(), machine.now()))
        if dice.random() < 0.2:
            machine.begin()  # killed while it starts, too
            machine.recorder.linger(dice.uniform(0.0, 0.8))
            machine.kill()
            assert machine.remains() == set()
            ends.append((machine.recorder.mark(), machine.now()))
        machine.jump(dice.uniform(0.0, 20.0))
        machine.start()
    machine.set(machine.now() // 60 * 60 + 56)
    names = {"p0", "p1", "p2", "p3", "p4", "Native", "Ticked"}
    later = machine.recorder.wait(lambda runs: {one.name for one in runs} >= names, 150, since=machine.recorder.mark())
    print(f"all went on {max(one.at for one in later) - ends[-1][1]:.1f} s after the last kill")
    machine.stop()
    ends.append((machine.recorder.mark(), machine.now()))
    return ends


def check_lives(machine, ends):
    """In each life of the engine no function ran more often than it was started, nor before."""
    starts, runs = machine.starts(), machine.recorder.runs
    index, began, lost = 0, 0.0, 0
    for last, ended in ends:
        heard = runs[index:last]
        written = [one for one in starts if began <= one.at < ended]
        for name in {one.name for one in heard if one.name.startswith("p")}:
            ran = sorted(one.at for one in heard if one.name == name)
            started = sorted(one.at for one in written if one.name == name)
            assert len(ran) <= len(started), (name, ran, started)
            assert all(run >= start for run, start in zip(ran, started, strict=False)), (name, ran, started)
        lost += sum(one.name.startswith("p") for one in written) - sum(one.name.startswith("p") for one in heard)
        index, began = last, ended
    print(f"{len(ends)} lives, {len(starts)} starts, {len(runs)} runs; {lost} of plain functions were lost to a kill")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("machine", ["2026-06-01T12:00:10"], indirect=True)
@pytest.mark.parametrize(
    "kills", [5, pytest.param(int(os.environ.get("GPUSERVE_SCHEDULE_KILLS", "100")), marks=pytest.mark.heavy)]
)
def test_an_engine_that_is_killed_at_due_times_starts_no_time_twice_and_goes_on(machine, kills):
    ends = kill_at_due_times(machine, int(os.environ.get("GPUSERVE_SEED", "5")), kills)
    no_start_is_doubled(machine)
    check_lives(machine, ends)
