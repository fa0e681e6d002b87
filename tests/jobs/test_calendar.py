"""When a schedule fires, against Debian's cron.c stepped minute by minute."""

from __future__ import annotations

import random
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpuserve.calendar import Cron, Period, fires_between, latest_due, next_fire

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
CRONS = tuple(
    map(Cron.parse, ("0 2 * * *", "30 1 * * *", "30 2 * * *", "*/15 * * * *", "0 * * * *", "15,45 0-3 1-31 * *"))
)
AROUND = timedelta(hours=26)


def transitions(zone: zoneinfo.ZoneInfo, first: int = 2024, last: int = 2037) -> list[datetime]:
    """Each change of a zone's offset in these years, to the minute."""
    found = []
    at, end = datetime(first, 1, 1, tzinfo=UTC), datetime(last + 1, 1, 1, tzinfo=UTC)
    while at < end:
        step = at + timedelta(days=1)
        if at.astimezone(zone).utcoffset() != step.astimezone(zone).utcoffset():
            low, high = at, step
            while high - low > MINUTE:
                middle = low + (high - low) // 2
                middle -= timedelta(seconds=middle.second, microseconds=middle.microsecond)
                if middle <= low:
                    break
                same = middle.astimezone(zone).utcoffset() == low.astimezone(zone).utcoffset()
                low, high = (middle, high) if same else (low, middle)
            found.append(high)
        at = step
    return found


def debian(crons: tuple[Cron, ...], zone: zoneinfo.ZoneInfo, first: datetime, last: datetime) -> list[list[datetime]]:
    """The main loop of Debian's cron.c over these minutes: what each job was started at, once a minute at most."""
    started: list[list[datetime]] = [[] for _ in crons]
    epoch = datetime(1970, 1, 1)

    def walls() -> Iterator[tuple[datetime, datetime]]:
        at = first
        while at <= last:
            yield at, at.astimezone(zone).replace(tzinfo=None, fold=0)
            at += MINUTE

    def find_jobs(wall: datetime, at: datetime, *, wild: bool, fixed: bool) -> None:
        for cron, fires in zip(crons, started, strict=True):
            if not (wild if cron.follows_clock else fixed):
                continue
            named = wall.minute in cron.minutes and wall.hour in cron.hours and cron.names_day(wall.date())
            if named and fires[-1:] != [at]:
                fires.append(at)

    virtual = None
    for at, wall in walls():
        running = (wall - epoch) // MINUTE
        passed = 1 if virtual is None else running - virtual
        if passed == 1:
            virtual = running
            find_jobs(wall, at, wild=True, fixed=True)
        elif 5 < passed <= 180:
            find_jobs(wall, at, wild=True, fixed=False)
            while virtual < running:
                virtual += 1
                find_jobs(epoch + virtual * MINUTE, at, wild=False, fixed=True)
        elif -180 < passed <= 0:
            find_jobs(wall, at, wild=True, fixed=False)
        else:
            virtual = running
            find_jobs(wall, at, wild=True, fixed=True)
    return started


def differences(zone_name: str, changes: list[datetime], crons: tuple[Cron, ...] = CRONS) -> list[str]:
    zone, wrong = zoneinfo.ZoneInfo(zone_name), []
    for change in changes:
        first, last = change - AROUND, change + AROUND
        for cron, expected in zip(crons, debian(crons, zone, first, last), strict=True):
            ours = [one.astimezone(UTC) for one in fires_between(cron, zone, first - MINUTE, last)]
            if ours != expected:
                odd = sorted(set(ours) ^ set(expected))[:3]
                wrong.append(f"{zone_name} {change} {cron.text}: {odd}")
    return wrong


ZONES = sorted(zoneinfo.available_timezones())


def changing(names: list[str]) -> Iterator[tuple[str, list[datetime]]]:
    for name in names:
        found = transitions(zoneinfo.ZoneInfo(name))
        if found:
            yield name, found


def test_a_sample_of_clock_changes_is_as_debians_cron_has_it():
    chosen = random.Random(20261125)
    wrong = []
    for name in ("Europe/Berlin", "Australia/Lord_Howe", "Antarctica/Troll", *chosen.sample(ZONES, 10)):
        found = transitions(zoneinfo.ZoneInfo(name), 2026, 2026) or transitions(zoneinfo.ZoneInfo(name), 2024, 2025)
        wrong += differences(name, chosen.sample(found, min(2, len(found))))
    assert wrong == []


@pytest.mark.heavy
def test_every_change_of_every_zone_until_2037_is_as_debians_cron_has_it():
    wrong, compared, known = [], 0, {}
    for name, found in changing(ZONES):
        zone = zoneinfo.ZoneInfo(name)
        # zones that are one another's alias, or agree in all these years, are compared once
        places = tuple(
            (one, (one - HOUR).astimezone(zone).utcoffset(), one.astimezone(zone).utcoffset()) for one in found
        )
        if known.setdefault(places, name) == name:
            wrong += differences(name, found)
        compared += len(found) * len(CRONS)
    print(f"{len(ZONES)} zones, {compared} comparisons")
    assert compared > 30_000
    assert wrong == []


def berlin(*when: int) -> datetime:
    return datetime(*when, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))


def test_what_the_clock_skips_fires_as_soon_as_it_has_jumped_and_once():
    fires = list(
        fires_between(Cron.parse("0,30 2 * * *"), "Europe/Berlin", berlin(2026, 3, 28, 12), berlin(2026, 3, 30, 12))
    )
    assert [one.isoformat() for one in fires] == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:00:00+02:00",
        "2026-03-30T02:30:00+02:00",
    ]


def test_what_the_clock_shows_twice_fires_once_and_wildcards_follow_the_clock():
    day = berlin(2026, 10, 25, 0), berlin(2026, 10, 25, 4)
    once = list(fires_between(Cron.parse("30 2 * * *"), "Europe/Berlin", *day))
    hourly = list(fires_between(Cron.parse("30 * * * *"), "Europe/Berlin", *day))
    assert [one.isoformat() for one in once] == ["2026-10-25T02:30:00+02:00"]
    assert [one.isoformat()[11:] for one in hourly] == [
        "00:30:00+02:00", "01:30:00+02:00", "02:30:00+02:00", "02:30:00+01:00", "03:30:00+01:00",
    ]  # fmt: skip


def test_a_leap_day_is_found_over_the_turn_of_a_century():
    after = datetime(2096, 3, 1, tzinfo=UTC)
    assert next_fire(Cron.parse("0 0 29 2 *"), "UTC", after).year == 2104


TIMES = st.datetimes(datetime(2024, 1, 1), datetime(2037, 12, 31)).map(lambda one: one.replace(tzinfo=UTC))
SPECS = st.sampled_from(
    [*CRONS, Cron.parse("* * * * *"), Cron.parse("7 3 1 */2 *"), Cron.parse("0 0 * * 1-5"), Cron.parse("*/5 1 * * sun"),
     Period.of(hours=7), Period.of(datetime(2024, 1, 31, tzinfo=UTC), months=1), Period.of(seconds=1.5)]
)  # fmt: skip
ANY_ZONE = st.sampled_from(
    ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Africa/Casablanca"]
)


@given(SPECS, ANY_ZONE, TIMES)
@example(Cron.parse("0 2 * * *"), "Europe/Berlin", datetime(2032, 3, 28, 1, tzinfo=UTC))
def test_the_latest_due_time_is_the_last_before_the_next(spec, zone, at):
    latest, following = latest_due(spec, zone, at), next_fire(spec, zone, at)
    assert latest.astimezone(UTC) <= at < following.astimezone(UTC)
    assert next_fire(spec, zone, latest) == following
    # in UTC: a microsecond less on Berlin's own clock may be a time that it never shows
    assert next_fire(spec, zone, latest.astimezone(UTC) - timedelta(microseconds=1)) == latest


@given(SPECS, ANY_ZONE, TIMES)
def test_no_step_is_skipped_by_asking_from_within_it(spec, zone, at):
    following = next_fire(spec, zone, at)
    middle = at + (following.astimezone(UTC) - at) / 2
    assert next_fire(spec, zone, middle) == following


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="has no zone"):
        next_fire(CRONS[0], "UTC", datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="did you mean Europe/Berlin"):
        next_fire(CRONS[0], "Europe/Berln", datetime(2026, 1, 1, tzinfo=UTC))
