"""What runs in Modal functions on behalf of jobs: their clocks, and what the command line asks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gpuserve.calendar import fires_between
from gpuserve.exceptions import JobError
from gpuserve.runtime.jobs.clock import Looked, Why, backfill, look, start_by_hand
from gpuserve.runtime.jobs.decisions import Trigger
from gpuserve.runtime.jobs.history import History
from gpuserve.runtime.jobs.plan import JobOutcome, JobPlan, JobRun, parse_time, told
from gpuserve.runtime.jobs.running import JobPorts, run_job
from gpuserve.runtime.ports import LeaseEntries, ModalCalls, ModalVolume
from gpuserve.runtime.telemetry.outlet import alert_sender

__all__ = ["LEASES", "MOUNT", "VOLUME", "look_at_all", "operate", "run_in_container"]

VOLUME, MOUNT, LEASES = "gpuserve-jobs", "/gpuserve-jobs", "gpuserve-jobs-leases"
_MOST_LINES = 1000


@contextmanager
def _ports(plan: JobPlan) -> Iterator[JobPorts]:
    """What a job has around it in a container of Modal's."""
    sender = alert_sender(plan.name, plan.alerts) if plan.alerts is not None else None
    told_of = plan.alerts.on if plan.alerts is not None else ()

    def alert(kind: str, text: str) -> None:
        _say({"event": f"job_{kind}", "job": plan.name, "text": text})
        if sender is not None and kind in told_of:
            sender.send(kind, text)

    history = History(Path(MOUNT), ModalVolume(VOLUME), plan.app, plan.name)
    try:
        yield JobPorts(history, LeaseEntries(LEASES), ModalCalls(), alert)
    finally:
        if sender is not None:
            sender.close()


def run_in_container(
    plan: JobPlan, body: Callable[[JobRun], Any], *, at: str, trigger: Trigger, force: bool
) -> JobOutcome:
    """One run, and then a look at what waits for its end."""
    with _ports(plan) as ports:
        try:
            outcome = run_job(plan, body, ports, at=at, trigger=trigger, force=force)
        finally:
            look(plan, ports, "ended")
    _say({"event": "job_run", "job": plan.name, "state": outcome.state, "nominal": told(outcome.nominal_time)})
    return outcome


def look_at_all(plans: Sequence[JobPlan], why: Why) -> list[dict[str, Any]]:
    """A look at the clock for each job; one that fails does not keep the others from theirs."""
    done: list[dict[str, Any]] = []
    failures: list[str] = []
    for plan in plans:
        try:
            with _ports(plan) as ports:
                looked: Looked = look(plan, ports, why)
        except Exception as error:  # noqa: BLE001 (told below, all of them)
            failures.append(f"{plan.name}: {type(error).__name__}: {error}")
        else:
            done.append(asdict(looked))
            if looked.started or looked.skipped or looked.missed:
                _say({"event": "job_clock", **asdict(looked)})
    if failures:
        raise JobError(f"the clock failed for {'; '.join(failures)}")
    return done


def operate(plans: Sequence[JobPlan], operation: str, job: str, arguments: dict[str, Any]) -> Any:
    """What the command line asks; plain values alone.

    Raises:
        JobError: If there is no such job, or it cannot be done.
    """
    if operation == "list":
        return [_line(plan) for plan in plans]
    plan = next((one for one in plans if one.name == job), None)
    if plan is None:
        raise JobError(f"the app has no job {job!r}; it has {', '.join(one.name for one in plans)}")
    with _ports(plan) as ports:
        ports.history.reload()
        match operation:
            case "history":
                limit = min(int(arguments["limit"]), _MOST_LINES)
                return [one.told() for one in ports.history.newest(limit)]
            case "run":
                return _run(plan, ports, str(arguments["at"]), force=bool(arguments["force"]))
            case "pause" | "resume":
                return _paused(plan, ports, pause=operation == "pause")
            case "backfill":
                first, last = (_given(plan, ports, str(arguments[name])) for name in ("first", "last"))
                started, done = backfill(plan, ports, first, last)
                return {"job": plan.name, "runs": started, "already_done": done}
    raise JobError(f"{operation!r} is none of list, history, run, pause, resume, backfill")


def _line(plan: JobPlan) -> dict[str, Any]:
    with _ports(plan) as ports:
        ports.history.reload()
        now, newest = ports.now(), ports.history.newest(1)
        upcoming = fires_between(plan.schedule.spec, plan.schedule.zone, now, now + timedelta(days=366 * 41))
        following = next(upcoming)
        return {
            "job": plan.name,
            "schedule": str(plan.schedule),
            "clock": plan.clock,
            "overlap": plan.overlap,
            "catch_up": plan.catch_up,
            "paused": ports.history.paused,
            "next": following.isoformat(),
            "then": next(upcoming).isoformat(),
            "last": newest[0].told() if newest else None,
        }


def _run(plan: JobPlan, ports: JobPorts, at: str, *, force: bool) -> dict[str, Any]:
    nominal = parse_time(at, plan.schedule, ports.now)
    done = next((one for one in ports.history.of(nominal) if one.state == "succeeded"), None)
    if done is not None and not force:
        return {"job": plan.name, "nominal": told(nominal), "state": "already_done", "attempt": done.attempt}
    call_id = start_by_hand(plan, ports, nominal, force=force)
    return {"job": plan.name, "nominal": told(nominal), "state": "started", "call_id": call_id}


def _paused(plan: JobPlan, ports: JobPorts, *, pause: bool) -> dict[str, Any]:
    if plan.clock == "native" and pause:
        # Modal's schedule fires on; the look that follows starts nothing
        _say({"event": "job_paused", "job": plan.name})
    if pause:
        ports.history.pause(ports.now())
    else:
        ports.history.resume()
    ports.history.commit()
    return {"job": plan.name, "paused": ports.history.paused}


def _given(plan: JobPlan, ports: JobPorts, text: str) -> datetime:
    """Any time up to now, on the schedule's clock unless it names a zone."""
    from zoneinfo import ZoneInfo

    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise JobError(f"got {text!r}, and a time such as '2026-11-25' or '2026-11-25T02:00' is allowed") from None
    found = found if found.tzinfo is not None else found.replace(tzinfo=ZoneInfo(plan.schedule.zone))
    return min(found, ports.now())


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
