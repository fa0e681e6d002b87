"""When a schedule fires: the next time, the latest one, all in between. Pure.

A cron string without ``*`` in its minute and hour names times of day. Where the clock jumps ahead over one, it fires
as soon as the clock has jumped (once, however many of its times were skipped); where the clock jumps back, it does not
fire again for what it shows a second time. With ``*`` in either it fires by the clock as it is shown.

Source:
    cron(8) of Debian and its cron.c, whose limit is three hours: a clock that jumps further was corrected, and then
    every schedule follows the new time at once. croniter 7.0.0 and APScheduler 3.11.3 fire ``30 1 * * *`` twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from gpuserve.calendar.cron import Cron
from gpuserve.calendar.period import Period
from gpuserve.calendar.zones import clock_jump, offset_at, the_jump, zone_named

__all__ = ["fires_between", "latest_due", "next_fire"]

_MINUTE = timedelta(minutes=1)
# Source: Debian's cron.c, 3 * MINUTE_COUNT, counted in minutes that passed: one more than were skipped.
_SKIPPED, _REPEATED = timedelta(minutes=179), timedelta(minutes=180)
# No schedule that fires at all is silent for longer: a 29th of February on a Sunday, over the turn of a century.
_LONGEST_SILENCE = timedelta(days=41 * 366)


def next_fire(spec: Cron | Period, zone: str | ZoneInfo, after: datetime) -> datetime:
    """The first time after *after* at which the schedule fires, as its zone's clock shows it.

    Args:
        spec: A cron string's minutes, or a period.
        zone: The zone that a cron string is read in, by its IANA name.
        after: A time with a zone.

    Raises:
        ValueError: If *after* has no zone, or there is no such zone.

    Examples:
        >>> berlin = Cron.parse("30 2 * * *")
        >>> next_fire(berlin, "Europe/Berlin", datetime(2026, 3, 28, 12, tzinfo=UTC)).isoformat()
        '2026-03-29T03:00:00+02:00'
        >>> next_fire(berlin, "Europe/Berlin", datetime(2026, 3, 29, 12, tzinfo=UTC)).isoformat()
        '2026-03-30T02:30:00+02:00'
    """
    where = zone if isinstance(zone, ZoneInfo) else zone_named(zone)
    if after.tzinfo is None:
        raise ValueError(f"{after!r} has no zone; write datetime(…, tzinfo=zoneinfo.ZoneInfo('UTC'))")
    if isinstance(spec, Period):
        return spec.after(after).astimezone(where)
    return _next_of_cron(spec, where, after.astimezone(UTC)).astimezone(where)


def _next_of_cron(cron: Cron, zone: ZoneInfo, after: datetime) -> datetime:
    here = after.astimezone(zone)
    wall = here.replace(tzinfo=None, fold=0)
    start = wall.replace(second=0, microsecond=0) + _MINUTE
    jump = clock_jump(zone, wall)
    if not here.fold and jump < timedelta(0) and _is_repeated(cron, -jump):
        # the clock shows this hour for the first time: what is left of it comes first, and then all of it again
        back_at = the_jump(zone, wall)
        candidate = cron.first_from(start)
        if candidate < (back_at + offset_at(zone, wall, 0)).replace(tzinfo=None):
            return (candidate - offset_at(zone, candidate, 0)).replace(tzinfo=UTC)
        start = (back_at + offset_at(zone, wall, 1)).replace(tzinfo=None)
    while True:
        candidate = cron.first_from(start)
        fire = _fire_of(cron, zone, candidate, after)
        if fire is not None:
            return fire
        start = candidate + _MINUTE


def _fire_of(cron: Cron, zone: ZoneInfo, wall: datetime, after: datetime) -> datetime | None:
    """When a time of day that the string names fires, if it does so after *after*."""
    jump = clock_jump(zone, wall)
    if jump > timedelta(0):
        return the_jump(zone, wall) if not cron.follows_clock and jump <= _SKIPPED else None
    first = (wall - offset_at(zone, wall, 0)).replace(tzinfo=UTC)
    if first > after:
        return first
    again = (wall - offset_at(zone, wall, 1)).replace(tzinfo=UTC)
    return again if again > after and _is_repeated(cron, -jump) else None


def _is_repeated(cron: Cron, back: timedelta) -> bool:
    """Whether times that the clock shows twice, since it went back by so much, fire twice."""
    return cron.follows_clock or back > _REPEATED


def latest_due(spec: Cron | Period, zone: str | ZoneInfo, at: datetime) -> datetime | None:
    """The last time at or before *at* at which the schedule fires; ``None`` if that is more than 41 years ago.

    Raises:
        ValueError: If *at* has no zone, or there is no such zone.

    Examples:
        >>> latest_due(Cron.parse("0 2 * * *"), "UTC", datetime(2026, 1, 2, 1, 59, tzinfo=UTC)).isoformat()
        '2026-01-01T02:00:00+00:00'
    """
    if at.tzinfo is None:
        raise ValueError(f"{at!r} has no zone; write datetime(…, tzinfo=zoneinfo.ZoneInfo('UTC'))")
    # in UTC: Python compares and adds times of one other zone as if its clock never jumped
    until, back = at.astimezone(UTC), timedelta(minutes=2)
    while (found := next_fire(spec, zone, until - back)) > until:
        if back > _LONGEST_SILENCE:
            return None
        back *= 4
    behind = until  # nothing fires after it and up to until
    while (later := next_fire(spec, zone, found)) <= until:
        before = found.astimezone(UTC)
        middle = before + (behind - before) / 2
        halfway = next_fire(spec, zone, middle)
        if halfway <= until:
            found = halfway
        else:
            found, behind = later, middle
    return found


def fires_between(spec: Cron | Period, zone: str | ZoneInfo, after: datetime, until: datetime) -> Iterator[datetime]:
    """Each time after *after* and up to *until* at which the schedule fires, in order.

    Examples:
        >>> half_past = Cron.parse("30 * * * *")
        >>> new_year = datetime(2026, 1, 1, tzinfo=UTC)
        >>> [time.hour for time in fires_between(half_past, "UTC", new_year, new_year + timedelta(hours=3))]
        [0, 1, 2]
    """
    end = until.astimezone(UTC)  # Python compares times of one other zone as if its clock never jumped
    found = next_fire(spec, zone, after)
    while found <= end:
        yield found
        found = next_fire(spec, zone, found)
