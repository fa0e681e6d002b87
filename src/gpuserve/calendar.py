"""Cron strings, time zones and periods: what is wrong with one, in sentences. Pure.

Source:
    crontab(5): the five fields, their ranges, steps and names, and that a day matches by either of the two day
    fields where both are restricted.
"""

from __future__ import annotations

import difflib
import math
import re
import zoneinfo
from dataclasses import dataclass

__all__ = ["cron_faults", "period_faults", "zone_faults"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?P<first>\*|[0-9]+|[a-z]{3})(?:-(?P<last>[0-9]+|[a-z]{3}))?(?:/(?P<step>[0-9]+))?")
# Source: our choice; a shorter one would do nothing but start itself.
_SHORTEST_PERIOD_S = 1.0
_UNIT_S = {"weeks": 604_800, "days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True, slots=True)
class _Field:
    """One of the five: what it counts, from where to where, and the names of its values."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),
)


def cron_faults(text: str) -> tuple[str, ...]:
    """Everything that is wrong with a cron string; nothing if it is good.

    Examples:
        >>> cron_faults("*/15 9-17 * * mon-fri")
        ()
        >>> cron_faults("61 99 * * *")
        ('minute got 61, and 0 to 59 is allowed', 'hour got 99, and 0 to 23 is allowed')
        >>> cron_faults("0 0 30 2 *")
        ('it never comes: no month among 2 has a day 30',)
    """
    parts = text.split()
    if len(parts) != len(_FIELDS):
        names = ", ".join(field.name for field in _FIELDS)
        return (f"it has {len(parts)} fields, and a cron string has five: {names}",)
    faults: list[str] = []
    values = [_values(field, part, faults) for field, part in zip(_FIELDS, parts, strict=True)]
    if faults:
        return tuple(faults)
    _minute, _hour, days, months, _weekday = values
    any_weekday = parts[4].startswith("*")
    if any_weekday and min(days) > max(_LONGEST_MONTHS[month - 1] for month in months):
        return (f"it never comes: no month among {parts[3]} has a day {min(days)}",)
    return ()


def _values(field: _Field, text: str, faults: list[str]) -> set[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            faults.append(f"{field.name} got '{part}', and a number, a range, * or one with /step is allowed")
            continue
        star = match["first"] == "*"
        first = field.least if star else _number(field, match["first"], faults)
        last = (
            _number(field, match["last"], faults) if match["last"] else field.most if star or match["step"] else first
        )
        step = int(match["step"] or 1)
        if first is None or last is None:
            continue
        if match["last"] == "sun" and first > last:
            last = field.most  # mon-sun: Sunday is 7 as well as 0
        if step == 0 or first > last or (star and match["last"]):
            what = "a step of 1 or more" if step == 0 else "a range from low to high"
            faults.append(f"{field.name} got '{part}', and {what} is allowed")
            continue
        found.update(range(first, last + 1, step))
    return found


def _number(field: _Field, text: str, faults: list[str]) -> int | None:
    if text in field.names:
        return field.names.index(text) + field.least
    allowed = f"{field.least} to {field.most}" + (f" or {field.names[0]} to {field.names[-1]}" if field.names else "")
    if not text.isdecimal() or not field.least <= int(text) <= field.most:
        faults.append(f"{field.name} got {text}, and {allowed} is allowed")
        return None
    return int(text)


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


def period_faults(*, years: float = 0, months: float = 0, **units: float) -> tuple[str, ...]:
    """Everything that is wrong with a period of these units, the smaller of which add up to seconds.

    Args:
        years: Calendar years.
        months: Calendar months.
        **units: weeks, days, hours, minutes, seconds.

    Examples:
        >>> period_faults(hours=6)
        ()
        >>> period_faults(days=-1, seconds=float("nan"))
        ('days got -1, and a finite number of 0 or more is allowed', 'seconds got nan, and a finite number of 0 or more is allowed')
        >>> period_faults()
        ('it is 0 s long, and 1 s or more is allowed',)
    """  # noqa: E501 (a doctest's answer)
    given = {"years": years, "months": months, **units}
    faults = tuple(
        f"{name} got {value}, and a finite number of 0 or more is allowed"
        for name, value in given.items()
        if not math.isfinite(value) or value < 0
    )
    if faults or years or months:
        return faults
    length_s = sum(value * _UNIT_S[name] for name, value in units.items())
    return (f"it is {length_s:g} s long, and 1 s or more is allowed",) if length_s < _SHORTEST_PERIOD_S else ()
