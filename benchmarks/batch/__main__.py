"""`python -m benchmarks.batch`: this benchmark alone, with its own switches."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.batch.peers import ENVIRONMENTS
from benchmarks.batch.run import CASES, main
from benchmarks.table import PAGE, page

parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
parser.add_argument("--install", action="store_true", help="make the peers' environments, and stop")
parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
parser.add_argument("--documents", type=int, default=1280, help="how many docstrings are embedded")
parser.add_argument("--items", type=int, default=30_000, help="how many items go through the queues")
parser.add_argument("--only", choices=CASES, nargs="*", default=CASES, help="measure these anew, and keep the others")
options = parser.parse_args()
if options.install:
    ENVIRONMENTS.install()
    sys.exit(0)
found = main(rounds=options.rounds, documents=options.documents, items=options.items, only=tuple(options.only))
sys.stdout.write(json.dumps(found["summary"], indent=1) + "\n")
PAGE.write_text(page())
