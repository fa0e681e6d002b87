"""Cron strings: what is wrong with one, in sentences, and which minutes of a wall clock it names. Pure.

Source:
    crontab(5): the five fields, their ranges, steps and names, and that a day matches by either of the two day
    fields where both are restricted.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache

__all__ = ["Cron", "cron_faults"]

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?P<first>\*|[0-9]+|[a-z]{3})(?:-(?P<last>[0-9]+|[a-z]{3}))?(?:/(?P<step>[0-9]+))?")
_MINUTE, _DAY = timedelta(minutes=1), timedelta(days=1)


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


@dataclass(frozen=True, slots=True)
class Cron:
    """The minutes that a cron string names.

    Attributes:
        text: As it was written.
        follows_clock: Whether the minute or the hour begins with ``*``: such a job runs by the clock as it is shown,
            and one without runs once for each time that it names, also where the clock jumps.

    Examples:
        >>> cron = Cron.parse("30 2 * * mon-fri")
        >>> cron.follows_clock
        False
        >>> cron.first_from(datetime(2026, 3, 28, 12))
        datetime.datetime(2026, 3, 30, 2, 30)
    """

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either_day: bool
    follows_clock: bool

    @staticmethod
    def parse(text: str) -> Cron:
        """Read a cron string.

        Raises:
            ValueError: With everything that is wrong with it.
        """
        faults = cron_faults(text)
        if faults:
            raise ValueError(f"Cron('{text}'): {', '.join(faults)}")
        return _parsed(text)

    def names_day(self, day: date) -> bool:
        """Whether it has times on that day."""
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return (of_month or of_week) if self.either_day else (of_month and of_week)

    def first_from(self, wall: datetime) -> datetime:
        """The first of its minutes at or after *wall*, a time without a zone.

        Raises:
            OverflowError: If it would come after the year 9999.
        """
        start = wall.replace(second=0, microsecond=0)
        if start < wall:
            start += _MINUTE
        day, hour, minute = start.date(), start.hour, start.minute
        while True:
            if self.names_day(day):
                for one in self.hours[bisect_left(self.hours, hour) :]:
                    place = bisect_left(self.minutes, minute) if one == hour else 0
                    if place < len(self.minutes):
                        return datetime(day.year, day.month, day.day, one, self.minutes[place])  # noqa: DTZ001
                day += _DAY
            elif day.month in self.months:
                day += _DAY
            else:
                day = date(day.year + day.month // 12, day.month % 12 + 1, 1)
            hour = minute = 0


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Cron:
    parts = text.split()
    minutes, hours, days, months, weekdays = (
        _values(field, part, []) for field, part in zip(_FIELDS, parts, strict=True)
    )
    return Cron(
        text=text,
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(number % 7 for number in weekdays),
        either_day=not (parts[2].startswith("*") or parts[4].startswith("*")),
        follows_clock=parts[0].startswith("*") or parts[1].startswith("*"),
    )
