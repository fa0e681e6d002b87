"""What a batch is given to: a place that answers a list with a list, or fails in one of four ways."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from gpuserve.runtime.batch.trials import Failure, FailureKind

__all__ = ["FunctionTarget", "Target", "TargetError", "checked_answers"]


class TargetError(Exception):
    """A call that brought no answers."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.error_type}: {failure.message}")
        self.failure = failure


class Target(Protocol):
    """Answers batches."""

    name: str
    usd_per_container_hour: float | None

    async def call(self, batch: list[Any]) -> Sequence[Any]:
        """Answer each item, in order.

        Raises:
            TargetError: If there are no answers.
        """

    async def containers(self) -> int | None:
        """How many containers run now, where anyone can tell."""


def checked_answers(batch: list[Any], answers: Any) -> Sequence[Any]:
    """The answers, if there is one for each item.

    Raises:
        TargetError: If not.
    """
    count = len(answers) if hasattr(answers, "__len__") and not isinstance(answers, str | bytes | dict) else None
    if count == len(batch):
        found: Sequence[Any] = answers
        return found
    got = f"{count} answers" if count is not None else f"{type(answers).__name__}"
    message = f"a batch of {len(batch)} items was answered with {got}; return a list with one answer an item"
    raise TargetError(Failure(FailureKind.RAISED, "BatchError", message))


class FunctionTarget:
    """A function of this process, one batch at a time, in a thread of its own."""

    usd_per_container_hour: float | None = None

    def __init__(self, function: Callable[[list[Any]], Sequence[Any]], name: str) -> None:
        self.name = name
        self._function = function
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpuserve-batch-target")

    async def call(self, batch: list[Any]) -> Sequence[Any]:
        """Answer each item, in order.

        Raises:
            TargetError: If the function raised.
        """
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._function, batch)
        except Exception as error:
            raise TargetError(
                Failure(
                    FailureKind.RAISED, type(error).__name__, str(error), "".join(traceback.format_exception(error))
                )
            ) from error
        return checked_answers(batch, answers)

    async def containers(self) -> int | None:
        """None: it runs here."""
        return None
