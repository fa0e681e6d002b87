"""Time zones by their IANA names: what is wrong with one, and where its clock jumps. Pure."""

from __future__ import annotations

import difflib
import zoneinfo
from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["clock_jump", "offset_at", "the_jump", "zone_faults", "zone_named"]


def zone_faults(zone: str) -> tuple[str, ...]:
    """What is wrong with the name of a time zone; nothing if it is good.

    Examples:
        >>> zone_faults("Europe/Berlin")
        ()
        >>> zone_faults("Europe/Berln")
        ("time zone 'Europe/Berln' is not known; did you mean Europe/Berlin?",)
    """
    try:
        zoneinfo.ZoneInfo(zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if not known:
            return ("this machine has no time zone database; install one: pip install tzdata",)
        near = difflib.get_close_matches(zone, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "write an IANA name such as UTC or Europe/Berlin"
        return (f"time zone '{zone}' is not known; {hint}",)
    return ()


@lru_cache(maxsize=1024)
def zone_named(zone: str) -> zoneinfo.ZoneInfo:
    """The zone of that name.

    Raises:
        ValueError: If there is none, with what was meant perhaps.
    """
    faults = zone_faults(zone)
    if faults:
        raise ValueError(faults[0])
    return zoneinfo.ZoneInfo(zone)


def offset_at(zone: zoneinfo.ZoneInfo, wall: datetime, fold: int) -> timedelta:
    """How far a zone's clock that shows *wall*, for the first or the second time, is before UTC."""
    return wall.replace(tzinfo=zone, fold=fold).utcoffset() or timedelta(0)


def clock_jump(zone: zoneinfo.ZoneInfo, wall: datetime) -> timedelta:
    """By how much the clock jumped over *wall* (more than 0), or back so that it shows it twice (less than 0).

    Examples:
        >>> berlin = zone_named("Europe/Berlin")
        >>> [str(clock_jump(berlin, datetime(2026, month, 29 if month == 3 else 25, 2, 30))) for month in (3, 7, 10)]
        ['1:00:00', '0:00:00', '-1 day, 23:00:00']
    """
    return offset_at(zone, wall, 1) - offset_at(zone, wall, 0)


def the_jump(zone: zoneinfo.ZoneInfo, wall: datetime) -> datetime:
    """When the clock jumped that skips *wall* or shows it twice, in UTC and to the second."""
    before, after = offset_at(zone, wall, 0), offset_at(zone, wall, 1)
    low, high = sorted((wall - before, wall - after))
    low -= timedelta(seconds=1)
    # just before it the clock is as far from UTC as before it, and at high as after it
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        if middle.replace(tzinfo=UTC).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(tzinfo=UTC)
