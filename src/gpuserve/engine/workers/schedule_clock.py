"""Fires the schedules of deployed apps: once for each time at most, whatever the engine or the clock does.

That a function is started for a time is written down before its input is queued, under a key that no second start
can have. So a kill between the two loses that start, and none comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from gpuserve.engine.state.records import App, Function
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.state.schedules import Firing, Plan, Timetable, plan_of
from gpuserve.engine.store import Store

__all__ = ["Clocks", "ScheduleClock"]

log = logging.getLogger("gpuserve.engine")

_TABLES = """
CREATE TABLE IF NOT EXISTS schedules (
    function_id TEXT PRIMARY KEY, app_id TEXT NOT NULL, plan TEXT NOT NULL, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS schedule_starts (
    id INTEGER PRIMARY KEY, app_id TEXT NOT NULL, function_id TEXT NOT NULL, nominal REAL NOT NULL,
    started_at REAL NOT NULL, UNIQUE (function_id, nominal));
"""
# Starts that are remembered of a schedule: more than a day of minutes, by which a clock may be set back.
_KEPT_STARTS = 2000
_PRUNE_EVERY = 1000
# The longest look away from the clock, after which a jump of it is seen. Source: our choice.
_LONGEST_NAP_S = 1.0
# What the two clocks may differ by between two looks before it is said. Source: our choice; NTP slews by less.
_JUMP_S = 10.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """What time it is: *wall* in seconds since 1970, *steady* in seconds that nobody sets."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic


class ScheduleClock:
    """Keeps the timetable in step with what is deployed, and starts what is due.

    ``start(functions)`` queues one input without arguments for each.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        start: Callable[[Sequence[Function]], None],
        clocks: Clocks | None = None,
    ) -> None:
        """Read back what was in force."""
        self._registry, self._store, self._start, self._clocks = registry, store, start, clocks or Clocks()
        self._timetable, self._changed, self._since_prune = Timetable(), asyncio.Event(), 0
        store.create_tables(_TABLES)
        now = self._clocks.wall()
        self._wall, self._steady = now, self._clocks.steady()
        for function_id, since in store.query("SELECT function_id, since FROM schedules"):
            function = registry.functions.get(function_id)
            plan = _plan(function) if function is not None else None
            if plan is not None:
                self._timetable.put(function_id, plan, since=since, last=self._last(function_id), now=now)

    def _last(self, function_id: str) -> float | None:
        row = self._store.one("SELECT MAX(nominal) FROM schedule_starts WHERE function_id = ?", (function_id,))
        return None if row is None else row[0]

    def follow(self, app: App) -> None:
        """A version of *app* comes into force; a part of the transaction that makes it so.

        A cron string that stays the same goes on; a period begins anew.
        """
        if not app.is_deployed:
            return
        now = self._clocks.wall()
        rows = self._store.query("SELECT function_id, plan FROM schedules WHERE app_id = ?", (app.id,))
        before: dict[str, str] = dict(rows)
        for function_id in {*before, *app.function_ids.values()}:
            function = self._registry.functions.get(function_id)
            in_force = function is not None and function_id in app.function_ids.values()
            plan = _plan(function) if function is not None and in_force else None
            if plan is None:
                self._store.execute("DELETE FROM schedules WHERE function_id = ?", (function_id,))
                self._registry.after_commit(partial(self._timetable.drop, function_id))
            elif plan.restarts or before.get(function_id) != plan.text:
                self._store.execute(
                    "INSERT OR REPLACE INTO schedules (function_id, app_id, plan, since) VALUES (?, ?, ?, ?)",
                    (function_id, app.id, plan.text, now),
                )
                self._registry.after_commit(partial(self._put, function_id, plan, since=now))

    def _put(self, function_id: str, plan: Plan, *, since: float) -> None:
        self._timetable.put(function_id, plan, since=since, last=None, now=since)
        self._changed.set()

    def forget(self, app: App) -> None:
        """The app is stopped; a part of the transaction that makes it so."""
        for (function_id,) in self._store.query("SELECT function_id FROM schedules WHERE app_id = ?", (app.id,)):
            self._timetable.drop(function_id)
        self._store.execute("DELETE FROM schedules WHERE app_id = ?", (app.id,))
        self._store.execute("DELETE FROM schedule_starts WHERE app_id = ?", (app.id,))

    def fire(self) -> int:
        """Start what is due now; how many were."""
        now, steady = self._clocks.wall(), self._clocks.steady()
        jump = (now - self._wall) - (steady - self._steady)
        self._wall, self._steady = now, steady
        if abs(jump) > _JUMP_S:
            whither = "ahead" if jump > 0 else "back"
            log.warning(
                "the clock jumped %s by %s; each schedule that this passed over is started once, and none twice for "
                "one time", whither, timedelta(seconds=round(abs(jump))),
            )  # fmt: skip
            if jump < 0:
                self._timetable.rewind(now)
        due = self._timetable.due(now)
        if not due:
            return 0
        try:
            with self._store.transaction():
                fresh = [one for one in due if self._claim(one, now)]
        except sqlite3.Error as error:
            for one in due:
                self._timetable.again(one)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
                raise
            log.warning("no schedule could be fired, which is tried again: %s", error)
            return 0
        self._begin(fresh)
        self._prune(len(fresh))
        return len(fresh)

    def _claim(self, firing: Firing, now: float) -> bool:
        """Write down that a function is started for a time; false if it was before, or is there no more."""
        function = self._registry.functions.get(firing.function_id)
        if function is None:
            return False
        added = self._store.execute(
            "INSERT OR IGNORE INTO schedule_starts (app_id, function_id, nominal, started_at) VALUES (?, ?, ?, ?)",
            (function.app_id, function.id, firing.nominal, now),
        )
        return added == 1

    def _begin(self, firings: Sequence[Firing]) -> None:
        functions: list[Function] = []
        for one in firings:
            function = self._registry.functions.get(one.function_id)
            app = self._registry.apps.get(function.app_id) if function is not None else None
            if function is None or app is None or not app.is_deployed:
                self._timetable.drop(one.function_id)  # it is being stopped
            else:
                functions.append(function)
        self._start(functions)

    def _prune(self, started: int) -> None:
        self._since_prune += started
        if self._since_prune < _PRUNE_EVERY:
            return
        self._since_prune = 0
        self._store.execute(
            "DELETE FROM schedule_starts WHERE id IN (SELECT id FROM (SELECT id, ROW_NUMBER() OVER "
            "(PARTITION BY function_id ORDER BY id DESC) AS place FROM schedule_starts) WHERE place > ?)",
            (_KEPT_STARTS,),
        )

    async def run(self) -> None:
        """Fire, and wait for what comes next, until cancelled."""
        while True:
            self._changed.clear()
            try:
                self.fire()
            except Exception:
                log.exception("firing schedules failed, which is tried again")
            upcoming = self._timetable.next_at
            nap_s = _LONGEST_NAP_S if upcoming is None else upcoming - self._clocks.wall()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(max(nap_s, 0.0), _LONGEST_NAP_S)):
                    await self._changed.wait()

    def status(self) -> list[dict[str, Any]]:
        """Each schedule in force, the next one first, as `gpuserve local status --json` prints it."""
        lines = []
        for function_id, (plan, next_at) in self._timetable.entries.items():
            function = self._registry.functions.get(function_id)
            app = self._registry.apps.get(function.app_id) if function is not None else None
            if function is None or app is None:
                continue
            last = self._last(function_id)
            lines.append(
                {
                    "app": app.name,
                    "function": function.name,
                    "schedule": plan.text,
                    "next": _told(next_at),
                    "last": None if last is None else _told(last),
                }
            )
        return sorted(lines, key=lambda line: str(line["next"]))


def _told(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _plan(function: Function) -> Plan | None:
    try:
        return plan_of(function.definition.schedule)
    except ValueError as error:
        log.error("the schedule of %s is not fired: %s", function.name, error)  # noqa: TRY400 (declared long ago)
        return None
