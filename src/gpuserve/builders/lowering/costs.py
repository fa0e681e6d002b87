"""What a class can cost an hour; and one line of it when a process that ran or deployed an app ends."""

from __future__ import annotations

import atexit
import sys
import weakref
from typing import Any

import modal

from gpuserve.builders.finetune import FineTuneJob, training_declaration_of
from gpuserve.builders.job import ScheduledJob, job_declaration_of
from gpuserve.builders.server import WarmModelServer, declaration_of
from gpuserve.exceptions import DeclarationError
from gpuserve.prices import Prices
from gpuserve.specs.budget import HourlyCost, cost_line

__all__ = ["hourly_cost", "note_cost"]

_COSTS: weakref.WeakKeyDictionary[modal.App, dict[str, HourlyCost]] = weakref.WeakKeyDictionary()


def hourly_cost(target: Any, prices: Prices | None = None) -> HourlyCost:
    """The most that a class can cost an hour, with all the containers that it may start.

    Args:
        target: A `WarmModelServer`, `FineTuneJob` or `ScheduledJob` subclass, registered or not; or what
            ``with_options`` gave, which is a pool of its own beside its class.
        prices: E.g. `live_prices()`; the list unless given. A class's ``budget`` is compared with the list.

    Raises:
        DeclarationError: If *target* is none of these.
        PricesError: If *prices* are none.

    Examples:
        >>> import gpuserve
        >>> class Ranker(gpuserve.WarmModelServer):
        ...     image, gpu = gpuserve.ImageSpec.debian("3.11"), "L4"
        >>> print(gpuserve.hourly_cost(Ranker))
        up to $0.81 an hour (1 container of L4, list of ...)
    """
    known = {} if isinstance(target, type) else getattr(target, "__dict__", {})
    declaration = known.get("_gpuserve_declaration")
    if isinstance(target, type) and issubclass(target, WarmModelServer):
        declaration = declaration_of(target)
    elif isinstance(target, type) and issubclass(target, FineTuneJob):
        declaration = training_declaration_of(target)
    elif isinstance(target, type) and issubclass(target, ScheduledJob):
        declaration = job_declaration_of(target, {})
    if declaration is None:
        fault = (
            f"target got {str(target)[:200]}; write a WarmModelServer, FineTuneJob or ScheduledJob class, "
            f"registered or not, and not its instance"
        )
        raise DeclarationError("hourly_cost", (fault,))
    options = known.get("_gpuserve_options")
    cost: HourlyCost = (
        declaration.pool_cost_at(options, prices) if options is not None else declaration.hourly_cost_at(prices)
    )
    return cost


def note_cost(app: modal.App, name: str, cost: HourlyCost) -> None:
    """Count *name* among what *app* can cost; in a container nothing is said."""
    if not modal.is_local():
        return
    if not _COSTS:
        atexit.register(_tell)
    _COSTS.setdefault(app, {})[name] = cost


def _tell() -> None:
    for app, costs in _COSTS.items():
        if app.app_id is not None:  # it was run or deployed, and not only imported
            sys.stderr.write(f"{cost_line(app.name or 'the app', costs)}\n")
