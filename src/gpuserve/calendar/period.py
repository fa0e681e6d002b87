"""Periods: what is wrong with one, in sentences, and the times that it makes from where it is counted. Pure."""

from __future__ import annotations

import calendar
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

__all__ = ["EPOCH", "Period", "period_faults"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Where a period is counted from unless told otherwise."""
# Source: our choice; a shorter one would do nothing but start itself.
_SHORTEST_PERIOD_S = 1.0
_UNIT_S = {"weeks": 604_800, "days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
_LEAST_MONTH_S = 28 * 86_400
# Source: our choice; longer than anybody plans, and short enough for every date.
_LONGEST_PERIOD_S = 100 * 366 * 86_400


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
    if faults:
        return faults
    length_s = (12 * years + months) * _LEAST_MONTH_S
    length_s += sum(value * _UNIT_S[name] for name, value in units.items())
    if length_s < _SHORTEST_PERIOD_S:
        return (f"it is {length_s:g} s long, and 1 s or more is allowed",)
    return (f"it is {length_s:g} s long, and 100 years or less is allowed",) if length_s > _LONGEST_PERIOD_S else ()


@dataclass(frozen=True, slots=True)
class Period:
    """Every so many calendar months and seconds, counted in UTC.

    Attributes:
        months: Calendar months; a day that a month lacks is its last one.
        seconds: What is added to them.
        since: From when it is counted; that time itself is one of its times, as are those before it.

    Examples:
        >>> Period.of(hours=6).after(datetime(2026, 1, 1, 7, tzinfo=UTC)).isoformat()
        '2026-01-01T12:00:00+00:00'
        >>> monthly = Period.of(datetime(2026, 1, 31, tzinfo=UTC), months=1)
        >>> monthly.after(datetime(2026, 2, 1, tzinfo=UTC)).isoformat()
        '2026-02-28T00:00:00+00:00'
    """

    months: int
    seconds: float
    since: datetime = EPOCH

    @classmethod
    def of(cls, since: datetime = EPOCH, /, *, years: float = 0, months: float = 0, **units: float) -> Self:
        """Make one of weeks, days, hours, minutes and seconds.

        Raises:
            ValueError: With everything that is wrong with them.
        """
        faults = period_faults(years=years, months=months, **units)
        if faults:
            raise ValueError(f"Period: {', '.join(faults)}")
        seconds = sum(value * _UNIT_S[name] for name, value in units.items())
        return cls(int(12 * years + months), seconds, since)

    def at(self, number: int) -> datetime:
        """Its time of that number; 0 is where it is counted from."""
        months = self.since.month - 1 + number * self.months
        year, month = self.since.year + months // 12, months % 12 + 1
        day = min(self.since.day, calendar.monthrange(year, month)[1])
        return self.since.replace(year=year, month=month, day=day) + timedelta(seconds=number * self.seconds)

    def after(self, after: datetime) -> datetime:
        """Its first time after *after*."""
        length_s = self.months * 365.2425 / 12 * 86_400 + self.seconds
        number = math.floor((after - self.since).total_seconds() / length_s)
        while self.at(number) > after:
            number -= 1
        while self.at(number) <= after:
            number += 1
        return self.at(number)
