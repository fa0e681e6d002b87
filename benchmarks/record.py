"""Where a measurement is kept, and what machine and versions it was made with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "keep", "machine", "median"]

RESULTS = Path(__file__).parent / "results"


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """The machine, its load, and the versions of *packages*."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def keep(name: str, report: dict[str, Any]) -> Path:
    """Write the raw figures of one run; the newest of each name stands in the docs."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path
