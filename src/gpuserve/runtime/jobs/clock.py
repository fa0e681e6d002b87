"""A look at the clock: what of a job has come due, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from gpuserve.calendar import fires_between
from gpuserve.runtime.jobs.decisions import Decision, Situation, Skipped, Started, Trigger, decide
from gpuserve.runtime.jobs.history import Record, State, View
from gpuserve.runtime.jobs.plan import JobPlan, told
from gpuserve.runtime.jobs.running import JobPorts

__all__ = ["Looked", "Why", "backfill", "look", "start_by_hand"]

Why = Literal["fired", "tick", "ended"]
# A tick comes a minute after the one before; a time that is older than two of them was missed.
_ON_TIME = timedelta(seconds=120)
# What the clocks of two containers may differ by; one that is further behind was set back. Source: the leases' ttl_s.
_SKEW = timedelta(seconds=60)
# Times that one look goes through; those before them are counted as missed together.
_MOST_DUE = 50_000
_MOST_BACKFILL = 10_000


@dataclass(frozen=True)
class Looked:
    """What a look did, in figures."""

    job: str
    started: tuple[str, ...] = ()
    waiting: int = 0
    skipped: int = 0
    missed: int = 0


def look(plan: JobPlan, ports: JobPorts, why: Why) -> Looked:
    """Decide on what has come due since the last look, and start it.

    Args:
        plan: The job.
        ports: What is around it.
        why: ``"fired"``: its own schedule fired just now, so that the latest time is on time however late this runs.
            ``"tick"``: a minute has passed. ``"ended"``: a run has ended, and what waits for it may start.
    """
    with ports.deciding(plan):
        now = ports.now()
        ports.history.reload()
        view = ports.history.view(now)
        due = _due(plan, ports, view, now, fired=why == "fired") if why != "ended" else ()
        active = [one for one in view.unended if _is_alive(plan, ports, one)]
        situation = Situation(
            due=due,
            now=now,
            on_time=bool(due) and (why == "fired" or now - due[-1] <= _ON_TIME),
            active=len(active),
            waiting=view.waiting,
            paused=bool(ports.history.paused),
        )
        decision = decide(plan.overlap, plan.catch_up, plan.window, situation)
        if decision.cancel:
            for one in active:
                _note(ports, one.nominal, "cancelled", one.trigger, why="a later time took its place")
            ports.history.commit()
            for one in active:
                ports.calls.cancel(one.call_id)
        return _applied(plan, ports, decision)


def _due(plan: JobPlan, ports: JobPorts, view: View, now: datetime, *, fired: bool) -> tuple[datetime, ...]:
    """The times up to now that no clock has decided on; those that have a run already are left out."""
    since = ports.history.since(str(plan.schedule), now)
    if since == now:  # the first look at all, or at this schedule
        latest = plan.schedule.latest_until(now) if fired else None
        return (latest,) if latest is not None and latest.astimezone(UTC) not in view.succeeded else ()
    after = max(since, view.decided) if view.decided is not None else since
    if now < after - _SKEW:
        return _due_again(plan, ports, now, fired=fired)
    found: list[datetime] = []
    for one in fires_between(plan.schedule.spec, plan.schedule.zone, after, now):
        found.append(one)
        if len(found) > _MOST_DUE:
            del found[: _MOST_DUE // 2]
    return tuple(one for one in found if one.astimezone(UTC) not in view.succeeded)


def _due_again(plan: JobPlan, ports: JobPorts, now: datetime, *, fired: bool) -> tuple[datetime, ...]:
    """The clock was set back behind what is decided: a time that has just come, unless something is known of it."""
    latest = plan.schedule.latest_until(now)
    if latest is None or not (fired or now - latest <= _ON_TIME) or ports.history.of(latest):
        return ()
    return (latest,)


def _is_alive(plan: JobPlan, ports: JobPorts, record: Record) -> bool:
    """Whether Modal still has the call of a run that has not ended; if not, that is written down."""
    if ports.calls.is_alive(record.call_id):
        return True
    why = "its container ended without a word" if record.state != "failed" else f"it is not tried again: {record.why}"
    ended = Record(record.nominal, "failed", ports.clock(), record.trigger, record.attempt, record.fence, why=why)
    ports.history.note(ended)
    ports.alert("failed", f"the run for {told(record.nominal)} failed: {why} ({plan.name})")
    return False


def _applied(plan: JobPlan, ports: JobPorts, decision: Decision) -> Looked:
    missed = [one for one in decision.skip if one.missed]
    if missed:
        _note_missed(plan, ports, missed)
    for skipped in decision.skip:
        if not skipped.missed:
            _note(ports, skipped.nominal, "skipped", why=skipped.why)
    for waiting in decision.wait:
        _note(ports, waiting.nominal, "waiting", waiting.trigger)
    for one in decision.start:
        _start(plan, ports, one)
    ports.history.prune((ports.now() - timedelta(days=plan.keep_days)).date())
    ports.history.commit()
    return Looked(
        plan.name,
        started=tuple(told(one.nominal) for one in decision.start),
        waiting=len(decision.wait),
        skipped=len(decision.skip) - len(missed),
        missed=len(missed),
    )


def _start(plan: JobPlan, ports: JobPorts, one: Started) -> str:
    # first the call, then the note of it: where a kill comes between, the next look starts a second call for the same
    # time, and the lease and the history let one of the two do the work
    return _spawned(plan, ports, one.nominal, one.trigger)


def _spawned(plan: JobPlan, ports: JobPorts, nominal: datetime, trigger: Trigger, *more: object) -> str:
    at = ports.clock()  # before the run can begin, so that its own lines come after this one
    call_id = ports.calls.spawn(plan.app, plan.name, told(nominal), trigger, *more)
    ports.history.note(Record(nominal.astimezone(UTC), "queued", at, trigger, call_id=call_id))
    return call_id


def _note(ports: JobPorts, nominal: datetime, state: State, trigger: Trigger = "schedule", why: str = "") -> None:
    ports.history.note(Record(nominal.astimezone(UTC), state, ports.clock(), trigger, why=why))


def _note_missed(plan: JobPlan, ports: JobPorts, missed: list[Skipped]) -> None:
    first, last, count = missed[0].nominal, missed[-1].nominal, len(missed)
    which = told(last) if count == 1 else f"{count} times from {told(first)} to {told(last)}"
    note = Record(last.astimezone(UTC), "missed", ports.clock(), why=missed[-1].why, count=count)
    ports.history.note(note)
    ports.alert("missed", f"{plan.name} was not started for {which}: {missed[-1].why}")


def start_by_hand(plan: JobPlan, ports: JobPorts, nominal: datetime, *, force: bool) -> str:
    """Start a run for one time now, whatever the overlap policy says; its call's id."""
    call_id = _spawned(plan, ports, nominal, "manual", force)
    ports.history.commit()
    return call_id


def backfill(plan: JobPlan, ports: JobPorts, first: datetime, last: datetime) -> tuple[int, int]:
    """Have a run for each time from *first* to *last* that has none which succeeded: how many, and how many had.

    They run one after another, oldest first, unless overlaps are allowed.
    """
    with ports.deciding(plan):
        ports.history.reload()
        view = ports.history.view(ports.now())
        taken = {one.nominal for one in view.unended} | {one.nominal for one in view.waiting}
        wanted: list[Started] = []
        done = 0
        for one in fires_between(plan.schedule.spec, plan.schedule.zone, first - timedelta(microseconds=1), last):
            moment = one.astimezone(UTC)
            if moment in taken or any(record.state == "succeeded" for record in ports.history.of(moment)):
                done += 1
            elif len(wanted) < _MOST_BACKFILL:
                wanted.append(Started(one, "backfill"))
        at_once = wanted if plan.overlap == "allow" else wanted[: not (view.unended or view.waiting)]
        for start in at_once:
            _start(plan, ports, start)
        for waiting in wanted[len(at_once) :]:
            _note(ports, waiting.nominal, "waiting", waiting.trigger)
        ports.history.commit()
        return len(wanted), done
