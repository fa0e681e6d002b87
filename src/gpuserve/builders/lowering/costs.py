"""One line where an app was run or deployed, when the process that did it ends: what the app can cost an hour."""

from __future__ import annotations

import atexit
import sys
import weakref

import modal

from gpuserve.specs.budget import HourlyCost, cost_line

__all__ = ["note_cost"]

_COSTS: weakref.WeakKeyDictionary[modal.App, dict[str, HourlyCost]] = weakref.WeakKeyDictionary()


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
