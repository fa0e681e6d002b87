"""Cron strings, time zones and periods: what is wrong with one, and when it fires. Pure; no library of the field keeps
Debian's rule where clocks change.
"""

from __future__ import annotations

from gpuserve.calendar.cron import Cron, cron_faults
from gpuserve.calendar.fires import fires_between, latest_due, next_fire
from gpuserve.calendar.period import EPOCH, Period, period_faults
from gpuserve.calendar.zones import zone_faults, zone_named

__all__ = [
    "EPOCH",
    "Cron",
    "Period",
    "cron_faults",
    "fires_between",
    "latest_due",
    "next_fire",
    "period_faults",
    "zone_faults",
    "zone_named",
]
