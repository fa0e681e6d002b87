"""`python -m benchmarks jobs`: 500 schedules that are all due at the same second, and how late each input is queued."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import keep, machine, median
from gpuserve.engine import LocalEngine

__all__ = ["main"]

_APP = """
import modal
app = modal.App("schedules")
def tick(): pass
for number in range({count}):
    every_minute = modal.Cron("* * * * *")
    app.function(name=f"f{{number}}", serialized=True, scaledown_window=2, schedule=every_minute)(tick)
"""
_P99, _GOAL_S = 0.99, 0.2


def main(*, rounds: int = 3, schedules: int = 500) -> dict[str, Any]:
    """Deploy one app with so many schedules of every minute, and watch as many minutes as there are rounds.

    The containers that the schedules start run on the same cores, so that all but the first round find them busy.

    Args:
        rounds: Minutes.
        schedules: Functions with a schedule each.
    """
    with tempfile.TemporaryDirectory(prefix="gpuserve-bench-") as folder, LocalEngine() as engine:
        (Path(folder) / "app.py").write_text(_APP.format(count=schedules))
        command = [sys.executable, "-m", "modal", "deploy", "app.py"]
        environment = {**os.environ, **engine.environment}
        subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, timeout=500)
        first = (time.time() // 60 + 1) * 60
        while time.time() < first + 60 * (rounds - 1) + 20:
            time.sleep(1)
        created = sorted(call.created_at for call in list(engine.core.calls.calls.values()))
    late = [[at - nominal for at in created if nominal <= at < nominal + 60] for nominal in _minutes(first, rounds)]
    if any(len(one) != schedules for one in late):
        raise RuntimeError(f"not every schedule was fired once a minute: {[len(one) for one in late]}")
    p99 = [sorted(one)[round(_P99 * len(one)) - 1] for one in late]
    report = {
        "machine": machine(("gpuserve", "modal")),
        "counts": {"rounds": rounds, "schedules": schedules},
        "summary": [
            _line("lateness of 500 schedules due at once, p99", p99),
            _line("the same, the last of them", [max(one) for one in late]),
        ],
        "raw": {"lateness_s": late},
    }
    keep("jobs", report)
    return report


def _minutes(first: float, rounds: int) -> list[float]:
    return [first + 60 * number for number in range(rounds)]


def _line(what: str, seconds: list[float]) -> dict[str, Any]:
    ours = median(seconds) * 1000
    return {
        "what": what,
        "ours": ours,
        "floor": _GOAL_S * 1000,
        "unit": "ms",
        "ratio": ours / (_GOAL_S * 1000),
        "bar": 1.0,
    }
