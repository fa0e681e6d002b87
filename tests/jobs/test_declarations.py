"""Schedules and jobs that cannot be, refused where they are written, each by the name of its field."""

from __future__ import annotations

import itertools
import types

import modal
import pytest

import gpuserve

BAD_FIELDS = ["60", "-1", "1-", "5-1", "*/0", "a", "1,,2", "1.5", "*/", "??", "1-99", "0x1", "*-3", "1;2", "\u0661"]
BAD_ZONES = ["Mars/Phobos", "Europe/Berln", "", "../etc/passwd", "UTC+1", "utc utc", "/usr", "Europe/", "GMT+25", "\0"]
NUMBERS = [float("nan"), float("inf"), -1, -0.5, "6", None, True, [1], {}, 1e300]
UNITS = ["years", "months", "weeks", "days", "hours", "minutes", "seconds"]


def crons():
    for place, bad in itertools.product(range(5), BAD_FIELDS):
        fields = ["1", "1", "1", "1", "1"]
        fields[place] = {"60": ["60", "24", "32", "13", "8"][place]}.get(bad, bad)
        yield " ".join(fields)
    yield from ("", "* * * *", "* * * * * *", "@daily", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "61 99 * * *", "every day")
    yield from (None, 5, b"* * * * *", ["* * * * *"], 1.5, True)


def periods():
    yield from ({unit: value} for unit, value in itertools.product(UNITS, NUMBERS))
    yield from ({"months": 1.5}, {"years": 0.5}, {"fortnights": 1}, {"seconds": 0.5}, {"days": 0}, {"hour": 1}, {})


WRONG = [
    *((f"cron {cron!r}", "cron", lambda cron=cron: gpuserve.Schedule.cron(cron)) for cron in crons()),
    *(
        (f"zone {zone!r}", "zone", lambda zone=zone: gpuserve.Schedule.cron("0 2 * * *", zone=zone))
        for zone in [*BAD_ZONES, None, 5]
    ),
    *(
        (f"period {units!r}", next(iter(units), "period"), lambda units=units: gpuserve.Schedule.period(**units))
        for units in periods()
    ),
    *(
        (f"both {place}", "zone", lambda cron=cron, zone=zone: gpuserve.Schedule.cron(cron, zone=zone))
        for place, (cron, zone) in enumerate(itertools.product(["61 * * * *", "* * * *", "0 0 30 2 *"], BAD_ZONES))
    ),
]  # fmt: skip


def test_two_hundred_wrong_schedules_are_refused_by_name():
    assert len({name for name, _, _ in WRONG}) >= 200
    for name, field, make in WRONG:
        assert any(fault.startswith((field, "period")) for fault in faults_of(make)), name


def faults_of(make):
    try:
        make()
    except gpuserve.DeclarationError as error:
        return error.faults
    return ()


def test_all_faults_of_one_schedule_come_at_once():
    with pytest.raises(gpuserve.DeclarationError) as refused:
        gpuserve.Schedule.cron("61 99 * * *", zone="Mars/Phobos")
    assert len(refused.value.faults) == 3


def test_a_wrong_job_is_refused_where_it_is_defined():
    with pytest.raises(gpuserve.DeclarationError) as refused:

        class Wrong(gpuserve.ScheduledJob):
            schedule = gpuserve.Schedule.cron("0 2 * * *")
            overlap = "sometimes"
            catch_up = "most"
            retries = 99
            timeout_s = 0

            async def run(self, run):
                pass

    named = {fault.split()[0] for fault in refused.value.faults}
    assert {"overlap", "catch_up", "retries", "timeout_s", "run"} <= named


def test_a_tick_of_a_minute_cannot_fire_every_second():
    with pytest.raises(gpuserve.DeclarationError, match="once a minute"):

        class Fast(gpuserve.ScheduledJob):
            schedule = gpuserve.Schedule.period(seconds=30)
            clock = "tick"


class Nightly(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.cron("0 2 * * *", zone="Europe/Berlin")
    image = gpuserve.ImageSpec.debian()

    def run(self, run):
        return run.attempt


def test_what_cannot_be_registered_says_what_to_change():
    with pytest.raises(gpuserve.RegistrationError, match="needs an app with a name"):
        gpuserve.register(modal.App())(Nightly)
    app = modal.App("jobs")
    registered = gpuserve.register(app)(Nightly)
    assert isinstance(registered, modal.Function)
    with pytest.raises(gpuserve.RegistrationError, match="has a job Nightly already"):
        gpuserve.register(app)(Nightly)
    with pytest.raises(gpuserve.RegistrationError, match="registered already"):
        gpuserve.register(app)(registered)
    with pytest.raises(gpuserve.RegistrationError, match="cannot be subclassed"):

        class Twice(registered):
            pass

    class Bare(gpuserve.ScheduledJob):
        modal = types.MappingProxyType({"colour": "red"})

    with pytest.raises(gpuserve.DeclarationError) as refused:
        gpuserve.register(app, schedule=Nightly.schedule)(Bare)
    assert [fault.split()[0] for fault in refused.value.faults] == ["image", "run", "modal"]

    class Loud(Nightly):
        alerts = gpuserve.JobAlerts(webhook=gpuserve.SecretSpec(name="slack"))

    with pytest.raises(gpuserve.RegistrationError, match="share a webhook"):
        gpuserve.register(app)(Loud)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"hours": 6}, "0 */6 * * *"),
        ({"minutes": 15}, "*/15 * * * *"),
        ({"days": 1}, "0 0 * * *"),
        ({"weeks": 1}, "0 0 * * 4"),
        ({"hours": 1}, "0 */1 * * *"),
        ({"hours": 7}, None),
        ({"months": 1}, None),
        ({"seconds": 90}, None),
    ],
)
def test_a_period_is_a_cron_of_modals_where_it_can_be_so_that_no_deployment_moves_it(units, expected):
    from gpuserve.builders.lowering.job import _native

    schedule = gpuserve.Schedule.period(**units)
    proto = _native(schedule).proto_message
    if expected is None:
        assert proto.WhichOneof("schedule_oneof") == "period"
    else:
        assert proto.cron.cron_string == expected
        from datetime import UTC, datetime, timedelta

        from gpuserve.calendar import Cron, fires_between

        first = datetime(2026, 3, 1, tzinfo=UTC)
        span = (first, first + timedelta(days=20))
        assert list(fires_between(Cron.parse(expected), "UTC", *span)) == list(
            fires_between(schedule.spec, "UTC", *span)
        )
