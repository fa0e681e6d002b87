"""Run benchmarks by name, keep their raw figures, and write the docs' page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.batch import run as batch
from benchmarks.engine import run as engine
from benchmarks.jobs import run as jobs
from benchmarks.overload import run as overload
from benchmarks.quickstart import run as quickstart
from benchmarks.serving import run as serving
from benchmarks.table import PAGE, page
from benchmarks.train import run as train
from benchmarks.weights import run as weights

_ALL: dict[str, Callable[..., dict[str, Any]]] = {
    "batch": batch.main,
    "engine": engine.main,
    "jobs": jobs.main,
    "overload": overload.main,
    "quickstart": quickstart.main,
    "serving": serving.main,
    "train": train.main,
    "weights": weights.main,
}


def main() -> int:
    """Measure, print the summaries, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(_ALL)}; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--page", action="store_true", help="only write the docs' page from the kept figures")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(_ALL))
    if unknown:
        parser.error(f"unknown benchmarks: {', '.join(unknown)}; there are {', '.join(_ALL)}")
    missed = []
    for name in [] if options.page else options.names or list(_ALL):
        summary = _ALL[name](rounds=options.rounds)["summary"]
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
        missed += [line["what"] for line in summary if not _holds(line)]
    PAGE.write_text(page())
    for what in missed:
        sys.stderr.write(f"missed its bar: {what}\n")
    return 1 if missed else 0


def _holds(line: dict[str, object]) -> bool:
    ratio, bar = line["ratio"], line.get("bar")
    if not isinstance(ratio, float) or not isinstance(bar, float):
        return True
    return ratio >= bar if line.get("more_is_better") else ratio <= bar


if __name__ == "__main__":
    sys.exit(main())
