"""The windows that are under way: which of their items are answered, given up, or left. No clock, no call, no file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpuserve.runtime.batch.plan import plan_batches
from gpuserve.runtime.batch.rows import Window
from gpuserve.runtime.batch.trials import DeadLetter, Failure, FailureKind, RetryPolicy, Trial, after_failure

__all__ = ["OpenWindow"]


@dataclass(slots=True)
class OpenWindow:
    """A window between its reading and its commit.

    Attributes:
        answers: By the item's place.
        dead: By the item's place; bad rows are here from the start.
    """

    window: Window
    answers: dict[int, Any] = field(default_factory=dict)
    dead: dict[int, DeadLetter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give up the rows that could not be read."""
        for place, item in enumerate(self.window.items):
            if item.row.fault:
                failure = Failure(FailureKind.RAISED, item.row.fault_type, item.row.fault)
                self.dead[place] = DeadLetter(place, 0, failure)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to run."""
        return len(self.answers) + len(self.dead) == len(self.window.items)

    def left(self) -> list[int]:
        """The places of the items that have neither answer nor end."""
        return [
            place for place in range(len(self.window.items)) if place not in self.answers and place not in self.dead
        ]

    def plan(
        self, cost: Callable[[Any], float], *, max_items: int, max_cost: float | None, padded: bool
    ) -> list[Trial]:
        """What is to run: everything at first, what is left of it when a run is taken up."""
        left = self.left()
        costs = [cost(self.window.items[place].row.value) for place in left]
        batches = plan_batches(costs, max_items=max_items, max_cost=max_cost, padded=padded)
        return [Trial(self.window.index, tuple(left[one] for one in batch)) for batch in batches]

    def inputs(self, trial: Trial) -> list[Any]:
        """What the target is called with."""
        return [self.window.items[place].row.value for place in trial.places]

    def answer(self, trial: Trial, answers: Sequence[Any]) -> tuple[int, ...]:
        """Take answers in; an item that was settled before keeps what it has. Returns the places that are new."""
        new = []
        for place, one in zip(trial.places, answers, strict=True):
            if place not in self.answers and place not in self.dead:
                self.answers[place] = one
                new.append(place)
        return tuple(new)

    def fail(
        self, trial: Trial, failure: Failure, policy: RetryPolicy
    ) -> tuple[tuple[Trial, ...], tuple[DeadLetter, ...]]:
        """Take a failure in: what to run next, and what is given up."""
        verdict = after_failure(trial, failure, policy)
        for letter in verdict.dead:
            self.dead[letter.place] = letter
        return verdict.trials, verdict.dead
