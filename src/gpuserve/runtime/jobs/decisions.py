"""What is done with the times that have come: started, left waiting, or skipped. Pure.

Source:
    Temporal's overlap policies and catch-up window; that times which are caught up with wait for one another under
    every policy but ``allow`` and ``cancel_other`` is our choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from gpuserve.specs.schedule import CatchUp, Overlap

__all__ = ["Decision", "Situation", "Skipped", "Started", "Trigger", "decide"]

Trigger = Literal["schedule", "manual", "backfill", "catch_up"]


@dataclass(frozen=True, slots=True)
class Started:
    """A time that a run is started for, now or once it is its turn."""

    nominal: datetime
    trigger: Trigger


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known when a clock looks.

    Attributes:
        due: The times that nobody has decided on yet, up to now, oldest first.
        on_time: Whether the last of them has just come; the others were missed in any case.
        active: How many runs were started and have not ended.
        waiting: The times that wait for a run to end, oldest first.
        paused: Whether nothing is to be started.
    """

    due: tuple[datetime, ...]
    now: datetime
    on_time: bool = True
    active: int = 0
    waiting: tuple[Started, ...] = ()
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A time that no run is started for; *missed* says that nobody looked when it came."""

    nominal: datetime
    why: str
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Attributes:
        start: Runs to start now.
        wait: Times to leave waiting, behind those that wait already.
        skip: Times to write down as skipped; of those that wait, too.
        cancel: Whether the active runs are to be ended first.
    """

    start: tuple[Started, ...] = ()
    wait: tuple[Started, ...] = ()
    skip: tuple[Skipped, ...] = ()
    cancel: bool = False


def decide(overlap: Overlap, catch_up: CatchUp, window: timedelta, situation: Situation) -> Decision:
    """What to do with the times that are due.

    Examples:
        >>> from datetime import UTC
        >>> two = datetime(2026, 1, 1, 2, tzinfo=UTC)
        >>> decide("skip", "none", timedelta(days=1), Situation(due=(two,), now=two)).start[0].trigger
        'schedule'
        >>> decide("skip", "none", timedelta(days=1), Situation(due=(two,), now=two, active=1)).skip[0].why
        'a run was at work (overlap: skip)'
    """
    if situation.paused:
        return Decision(skip=tuple(Skipped(one, "the job is paused") for one in situation.due))
    wanted, missed = _wanted(catch_up, window, situation)
    if not wanted:
        return _advanced(Decision(skip=missed), situation)
    if overlap == "allow":
        return Decision(start=wanted, skip=missed)
    if overlap == "cancel_other":
        *older, newest = wanted
        gone = [one.nominal for one in (*situation.waiting, *older)]
        replaced = tuple(Skipped(one, "a later time took its place (overlap: cancel_other)") for one in gone)
        return Decision(start=(newest,), skip=missed + replaced, cancel=situation.active > 0)
    line, skip = list(wanted), list(missed)
    regular = wanted[-1] if wanted[-1].trigger == "schedule" else None
    if regular is not None and overlap == "skip" and (situation.active or situation.waiting):
        line.remove(regular)
        skip.append(Skipped(regular.nominal, "a run was at work (overlap: skip)"))
    if regular is not None and overlap == "queue_one" and situation.waiting:
        line.remove(regular)
        skip.append(Skipped(regular.nominal, "another time waited already (overlap: queue_one)"))
    if line and not situation.active and not situation.waiting:
        return Decision(start=(line[0],), wait=tuple(line[1:]), skip=tuple(skip))
    return _advanced(Decision(wait=tuple(line), skip=tuple(skip)), situation)


def _wanted(
    catch_up: CatchUp, window: timedelta, situation: Situation
) -> tuple[tuple[Started, ...], tuple[Skipped, ...]]:
    """The times that are to have a run, and those that were missed for good."""
    late = situation.due[:-1] if situation.on_time else situation.due
    regular = tuple(Started(one, "schedule") for one in situation.due[len(late) :])
    candidates = {"none": (), "one": () if regular else late[-1:], "all": late}[catch_up]
    kept = tuple(one for one in candidates if one >= situation.now - window)
    missed = tuple(Skipped(one, f"nobody looked when it came (catch_up: {catch_up})", missed=True) for one in late)
    lost = missed[: len(missed) - len(kept)]  # the latest are kept
    return tuple(Started(one, "catch_up") for one in kept) + regular, lost


def _advanced(decision: Decision, situation: Situation) -> Decision:
    """Start the first that waits, where nothing runs."""
    if situation.active or not situation.waiting:
        return decision
    return Decision(situation.waiting[:1], decision.wait, decision.skip, decision.cancel)
