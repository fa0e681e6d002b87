"""What to run next when a batch failed: again, in halves, or not at all. Pure: no clock, no call.

A failure is of one of four kinds, and each is answered differently:

- *raised*: the target's own code refused. Halves of the batch run by themselves, down to the item, which is tried again
  a declared number of times; then it is given up.
- *died*: the container ended, or took too long, with the batch in it. The same in eighths, so that an item that brings
  its container down ends alone; it is given up after two such ends, as Modal has tried it several times in each.
- *busy*: the target has no room now. The same batch again, after a while; it counts as no attempt.
- *lost*: nobody knows what became of the call, since the control plane was away. The same batch again, and it counts as
  no attempt either.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from enum import Enum

__all__ = ["DeadLetter", "Failure", "FailureKind", "RetryPolicy", "Trial", "after_failure"]

# Source: our choice. An engine is back within a second or two; a queue has room as soon as a batch is done.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


# A death costs the start of several containers, since Modal itself tries such an input again: fewer and smaller steps.
_PARTS_OF_THE_DEAD, _MOST_DEATHS = 8, 2


class FailureKind(Enum):
    """Why a trial brought no answers."""

    RAISED = "raised"
    DIED = "died"
    BUSY = "busy"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a trial failed.

    Attributes:
        error_type: The exception's name.
        message: What it said.
        traceback: Of the container, where it told one.
    """

    kind: FailureKind
    error_type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """Items of one window that run together.

    Attributes:
        window: The window's number.
        places: The items, by their places in the window.
        attempts: How often these items were run and failed, alone or in company.
        alone: How often of that the one item was run by itself.
        waits: How often in a row it could not be run, because the target was busy or away.
        delay_s: To wait before it runs.
    """

    window: int
    places: tuple[int, ...]
    attempts: int = 0
    alone: int = 0
    waits: int = 0
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An item that is given up, and why.

    Attributes:
        place: Its place in the window.
        attempts: How often it was run.
    """

    place: int
    attempts: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often an item is run by itself, and the delays between.

    Attributes:
        max_attempts: Runs of an item by itself before it is given up.
        first_delay_s: Before the second of them.
        factor: What each further delay is multiplied by.
        max_delay_s: The longest delay.
    """

    max_attempts: int = 3
    first_delay_s: float = 1.0
    factor: float = 2.0
    max_delay_s: float = 30.0

    def delay_s(self, alone: int) -> float:
        """Before the run that follows *alone* failed ones."""
        return min(self.first_delay_s * self.factor ** min(alone - 1, 64), self.max_delay_s)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows a failure."""

    trials: tuple[Trial, ...] = ()
    dead: tuple[DeadLetter, ...] = field(default=())


def after_failure(trial: Trial, failure: Failure, policy: RetryPolicy) -> Verdict:
    """What to run again, or what to give up.

    Examples:
        >>> refused = Failure(FailureKind.RAISED, "ValueError", "no")
        >>> halves = after_failure(Trial(0, (4, 5, 6)), refused, RetryPolicy()).trials
        >>> [half.places for half in halves]
        [(4,), (5, 6)]
    """
    if failure.kind in {FailureKind.BUSY, FailureKind.LOST}:
        wait = min(_FIRST_WAIT_S * 2.0 ** min(trial.waits, 16), _LONGEST_WAIT_S)
        return Verdict((replace(trial, waits=trial.waits + 1, delay_s=wait),))
    attempts = trial.attempts + 1
    died = failure.kind is FailureKind.DIED
    if len(trial.places) > 1:
        parts = _parted(trial.places, _PARTS_OF_THE_DEAD if died else 2)
        return Verdict(tuple(Trial(trial.window, part, attempts) for part in parts))
    alone = trial.alone + 1
    if alone < (min(policy.max_attempts, _MOST_DEATHS) if died else policy.max_attempts):
        again = replace(trial, attempts=attempts, alone=alone, waits=0, delay_s=policy.delay_s(alone))
        return Verdict((again,))
    return Verdict(dead=(DeadLetter(trial.places[0], attempts, failure),))


def _parted(places: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Up to *count* parts of like size."""
    count = min(count, len(places))
    edges = [len(places) * one // count for one in range(count + 1)]
    return [places[begin:end] for begin, end in itertools.pairwise(edges)]
