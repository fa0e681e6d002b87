"""Schedules of deployed apps on a clock that the test sets: kills, restarts, jumps, redeployments."""

from __future__ import annotations

import itertools
import logging
import random
import sqlite3
from datetime import UTC, datetime

import pytest

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.records import App
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.state.schedules import Timetable, plan_of
from gpuserve.engine.store import Store
from gpuserve.engine.workers.schedule_clock import Clocks, ScheduleClock

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def cron(text, zone="UTC"):
    return api_pb2.Schedule(cron=api_pb2.Schedule.Cron(cron_string=text, timezone=zone))


def period(**units):
    return api_pb2.Schedule(period=api_pb2.Schedule.Period(**units))


class World:
    """One engine's schedules, which can be killed and begun again; what was started, by nominal time."""

    def __init__(self, folder, at=NOON):
        self.folder, self.wall, self.steady, self.started = folder, at, 0.0, []
        self.store = None
        self.begin()

    def begin(self):
        if self.store is not None:
            self.store.close()
        self.store = Store(self.folder)
        self.registry = Registry(self.store)
        clocks = Clocks(lambda: self.wall, lambda: self.steady)
        self.clock = ScheduleClock(self.registry, self.store, self.start, clocks)

    def start(self, functions):
        self.started += [(function.name, self.wall - NOON) for function in functions]

    def deploy(self, **schedules):
        with self.store.transaction():
            app = self.registry.deployed("jobs", "main") or self.registry.add_app(
                App("ap", "main", "jobs", api_pb2.APP_STATE_DEPLOYED, 0.0, name="jobs")
            )
            known = {one.name: one for one in self.registry.functions_of("ap")}
            app.function_ids = {}
            for name, schedule in schedules.items():
                function = known.get(name) or self.registry.new_function("ap", name)
                function.definition = api_pb2.Function(function_name=name, schedule=schedule)
                app.function_ids[name] = function.id
            self.registry.save_app(app)
            self.clock.follow(app)
        return app

    def stop(self):
        app = self.registry.apps["ap"]
        with self.store.transaction():
            self.clock.forget(app)
            self.registry.drop_app(app)

    def run(self, seconds, step=10.0):
        for _ in range(round(seconds / step)):
            self.wall += step
            self.steady += step
            self.clock.fire()

    def nominal(self):
        return [row[0] - NOON for row in self.store.query("SELECT nominal FROM schedule_starts ORDER BY id")]


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.store.close()


def test_a_cron_and_a_period_fire_at_their_times(world):
    world.deploy(minutely=cron("*/2 * * * *"), later=period(seconds=90), never=api_pb2.Schedule())
    world.run(5 * MINUTE)
    assert world.started == [
        ("later", 90.0),
        ("minutely", 120.0),
        ("later", 180.0),
        ("minutely", 240.0),
        ("later", 270.0),
    ]


def test_a_redeployment_begins_a_period_anew_and_leaves_a_cron_alone(world):
    world.deploy(a=cron("*/2 * * * *"), b=period(minutes=2))
    world.run(100)
    world.deploy(a=cron("*/2 * * * *"), b=period(minutes=2))
    world.run(200)
    assert world.started == [("a", 120.0), ("b", 220.0), ("a", 240.0)]


def test_what_has_no_schedule_any_more_is_not_fired_and_a_stopped_app_neither(world):
    world.deploy(a=cron("* * * * *"), b=cron("* * * * *"))
    world.run(MINUTE)
    world.deploy(a=cron("* * * * *"), b=api_pb2.Schedule())
    world.run(MINUTE)
    world.stop()
    world.run(10 * MINUTE)
    assert sorted(world.started) == [("a", 60.0), ("a", 120.0), ("b", 60.0)]
    assert world.store.query("SELECT * FROM schedules") == world.store.query("SELECT * FROM schedule_starts") == []


def test_an_app_that_is_not_deployed_fires_nothing(world):
    app = world.registry.add_app(App("ap", "main", "jobs", api_pb2.APP_STATE_EPHEMERAL, 0.0))
    function = world.registry.new_function("ap", "a")
    function.definition = api_pb2.Function(function_name="a", schedule=cron("* * * * *"))
    app.function_ids = {"a": function.id}
    world.clock.follow(app)
    world.run(5 * MINUTE)
    assert world.started == []


def test_a_restart_goes_on_where_it_was(world):
    world.deploy(a=period(minutes=3), b=cron("*/2 * * * *"))
    world.run(200)
    world.begin()
    world.run(200)
    assert world.nominal() == [120.0, 180.0, 240.0, 360.0, 360.0]


def test_what_was_due_while_no_engine_ran_is_started_once_for_the_latest_time(world):
    world.deploy(a=cron("*/5 * * * *"), b=cron("0 3 * * *"), c=period(hours=1))
    world.run(5 * MINUTE)
    world.wall += DAY
    world.begin()
    world.clock.fire()
    assert sorted(world.started[1:]) == [("a", DAY + 300), ("b", DAY + 300), ("c", DAY + 300)]
    assert sorted(world.nominal()[1:]) == [15 * HOUR, DAY, DAY + 300]
    world.clock.fire()
    assert len(world.started) == 4


@pytest.mark.parametrize("jump", [2 * HOUR, -2 * HOUR, DAY, -DAY])
def test_a_jump_of_the_clock_brings_no_burst_and_one_line(world, caplog, jump):
    names = [f"f{number}" for number in range(20)]
    world.deploy(**{name: cron("* * * * *") for name in names})
    world.run(5 * MINUTE)
    before = len(world.started)
    world.wall += jump
    with caplog.at_level(logging.WARNING):
        world.clock.fire()
    burst = world.started[before:]
    assert len(burst) == (20 if jump > 0 else 0)
    assert len({name for name, _ in burst}) == len(burst)
    lines = [record.getMessage() for record in caplog.records]
    size = {2 * HOUR: "2:00:00", DAY: "1 day, 0:00:00"}[abs(jump)]
    assert len(lines) == 1
    assert lines[0].startswith(f"the clock jumped {'ahead' if jump > 0 else 'back'} by {size};")
    world.run(MINUTE)
    if jump > 0:
        assert len(world.started) == before + 40


def test_a_time_that_was_started_is_not_started_again_after_the_clock_was_set_back(world):
    world.deploy(a=cron("*/10 * * * *"))
    world.run(HOUR)
    world.wall -= HOUR / 2
    world.run(HOUR)
    assert world.nominal() == [600.0 * number for number in range(1, 10)]


def test_a_clock_that_was_a_year_ahead_does_not_silence_a_schedule_once_it_is_right(world):
    world.deploy(a=cron("0 * * * *"))
    world.wall += 365 * DAY
    world.clock.fire()
    world.begin()
    world.wall -= 365 * DAY
    world.run(2 * HOUR)
    assert world.nominal() == [365 * DAY, HOUR, 2 * HOUR]


def test_a_machine_that_stood_still_starts_each_schedule_once(world):
    world.deploy(a=cron("* * * * *"), b=cron("0 1 * * *"))
    world.run(MINUTE)
    world.wall, world.steady = world.wall + 600, world.steady + 600
    assert world.clock.fire() == 1
    assert world.nominal() == [60.0, 660.0]


def test_a_full_disk_delays_a_start_and_loses_none(world, caplog, monkeypatch):
    world.deploy(a=cron("* * * * *"))
    execute = world.store.execute

    def full(sql, values=()):
        if "schedule_starts" in sql:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return execute(sql, values)

    monkeypatch.setattr(world.store, "execute", full)
    world.run(MINUTE)
    assert world.started == []
    monkeypatch.undo()
    world.run(10)
    assert world.nominal() == [60.0]
    assert "tried again" in caplog.text


class KilledError(BaseException):
    """A SIGKILL, as far as the state is concerned."""


class Killer:
    """Kills at the step of that number: before or after a start is written down, or its input queued."""

    def __init__(self, deadly):
        self.deadly, self.steps = deadly, itertools.count()

    def around(self, step):
        def run(*arguments):
            self.die()
            result = step(*arguments)
            self.die()
            return result

        return run

    def die(self):
        if next(self.steps) == self.deadly:
            raise KilledError


def starts_under_kills(world, kills, seed):
    """Run, kill, begin again; the times that inputs were queued for, and how often it was killed."""
    chosen, started, done = random.Random(seed), [], 0
    latest = "SELECT MAX(id), nominal FROM schedule_starts WHERE function_id = ?"
    world.start = lambda functions: started.extend(
        (function.name, world.store.one(latest, (function.id,))[1]) for function in functions
    )
    world.deploy(a=cron("* * * * *"), b=period(seconds=45), c=cron("*/7 * * * *", "Europe/Berlin"))
    for _ in range(kills):
        world.begin()
        killer = Killer(chosen.randrange(24))
        world.clock._claim, world.clock._begin = killer.around(world.clock._claim), killer.around(world.clock._begin)
        try:
            world.run(chosen.randrange(10, 1000), step=5.0)
        except KilledError:
            done += 1
    return started, done


def test_no_time_is_started_twice_whatever_is_killed(world):
    started, kills = starts_under_kills(world, 40, seed=1)
    assert kills > 25
    assert len(started) == len(set(started)) > 10


@pytest.mark.heavy
def test_no_time_is_started_twice_under_a_thousand_kills(world):
    started, kills = starts_under_kills(world, 1500, seed=2)
    print(f"{kills} kills, {len(started)} starts")
    assert kills >= 1000
    assert len(started) == len(set(started)) > 300


def test_five_hundred_schedules_are_a_heap_and_not_a_scan(monkeypatch):
    table = Timetable()
    for number in range(500):
        plan = plan_of(cron(f"{number % 60} {number % 24} * * *"))
        table.put(f"f{number}", plan, since=NOON, last=None, now=NOON)
    asked = []
    monkeypatch.setattr(type(plan), "next_after", lambda self, at, since: asked.append(self) or at + DAY)
    assert len(table.due(table.next_at)) == len(asked) < 10
