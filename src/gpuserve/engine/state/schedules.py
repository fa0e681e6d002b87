"""When the schedules of deployed apps fire: a heap of next times, moved on by whoever knows the time. No I/O.

Times are seconds since 1970 by the clock on the wall, which may be set to anything at any moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from gpuserve.calendar import Cron, Period, latest_due, next_fire
from gpuserve.engine.protocol import api_pb2

__all__ = ["Firing", "Plan", "Timetable", "plan_of"]


@dataclass(frozen=True, slots=True)
class Plan:
    """When one function is due.

    Attributes:
        text: What was declared; two of the same text are the same schedule.
        restarts: Whether a deployment begins it anew, as Modal has it of a ``Period``.
    """

    text: str
    spec: Cron | Period
    zone: str
    restarts: bool

    def next_after(self, at: float, since: float) -> float:
        """The first time after *at* that it is due, where it is in force since *since*."""
        return next_fire(self._from(since), self.zone, _moment(at)).timestamp()

    def latest_until(self, at: float, since: float) -> float | None:
        """The last time up to *at* that it was due."""
        found = latest_due(self._from(since), self.zone, _moment(at))
        return None if found is None else found.timestamp()

    def _from(self, since: float) -> Cron | Period:
        if isinstance(self.spec, Cron):
            return self.spec
        return Period(self.spec.months, self.spec.seconds, _moment(since))


@dataclass(frozen=True, slots=True)
class Firing:
    """One function is to be started for one time."""

    function_id: str
    nominal: float


@dataclass(frozen=True, slots=True)
class _Entry:
    plan: Plan
    since: float
    next_at: float
    turn: int


def plan_of(schedule: api_pb2.Schedule) -> Plan | None:
    """What a function's declaration says of its times; ``None`` if it has none.

    Raises:
        ValueError: If it cannot be.
    """
    kind = schedule.WhichOneof("schedule_oneof")
    if kind == "cron":
        cron = schedule.cron
        zone = cron.timezone or "UTC"
        return Plan(f"cron {cron.cron_string} in {zone}", Cron.parse(cron.cron_string), zone, restarts=False)
    if kind == "period":
        period = schedule.period
        units = {field.name: getattr(period, field.name) for field in period.DESCRIPTOR.fields}
        told = ", ".join(f"{name}={value:g}" for name, value in units.items() if value)
        return Plan(f"period {told}", Period.of(**units), "UTC", restarts=True)
    return None


class Timetable:
    """All schedules that are in force, the next one first."""

    def __init__(self) -> None:
        """Start empty."""
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._turn = 0

    @property
    def next_at(self) -> float | None:
        """When the next one is due; ``None`` where there are none."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    @property
    def entries(self) -> Mapping[str, tuple[Plan, float]]:
        """Each function's plan, and when it is due next."""
        return {ident: (one.plan, one.next_at) for ident, one in self._entries.items()}

    def put(self, function_id: str, plan: Plan, *, since: float, last: float | None, now: float) -> None:
        """Put a schedule in force that is counted from *since* and was last started for *last*.

        What it missed meanwhile is due at once.
        """
        done = since if last is None else max(since, last)
        # done in the future: the clock was set back
        self._set(function_id, plan, since, plan.next_after(min(done, now), since))

    def drop(self, function_id: str) -> None:
        """It has no schedule any more."""
        self._entries.pop(function_id, None)

    def due(self, now: float) -> list[Firing]:
        """What is to be started by now, for its latest time alone, each schedule once; the next time is set."""
        found: list[Firing] = []
        while (first := self.next_at) is not None and first <= now:
            function_id = self._heap[0][2]
            one = self._entries[function_id]
            nominal, following = first, one.plan.next_after(first, one.since)
            if following <= now:
                nominal = one.plan.latest_until(now, one.since) or first
                following = one.plan.next_after(now, one.since)
            found.append(Firing(function_id, nominal))
            self._set(function_id, one.plan, one.since, following)
        return found

    def again(self, firing: Firing) -> None:
        """It could not be started: it is still due."""
        one = self._entries.get(firing.function_id)
        if one is not None:
            self._set(firing.function_id, one.plan, one.since, firing.nominal)

    def rewind(self, now: float) -> None:
        """The clock was set back to *now*: what comes after that is due again, which its starter knows to skip."""
        for function_id, one in list(self._entries.items()):
            self._set(function_id, one.plan, one.since, one.plan.next_after(now, one.since))

    def _set(self, function_id: str, plan: Plan, since: float, next_at: float) -> None:
        self._turn += 1
        self._entries[function_id] = _Entry(plan, since, next_at, self._turn)
        heapq.heappush(self._heap, (next_at, self._turn, function_id))

    def _is_current(self, place: tuple[float, int, str]) -> bool:
        entry = self._entries.get(place[2])
        return entry is not None and entry.turn == place[1]


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
