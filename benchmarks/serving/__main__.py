"""`python -m benchmarks.serving`: this benchmark alone, with its own switches."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.serving import peers
from benchmarks.serving.run import CASES, main
from benchmarks.table import PAGE, page

parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
parser.add_argument("--install", action="store_true", help="make the peers' environment, and stop")
parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured")
parser.add_argument("--seconds", type=int, default=2, help="how long the no-op model is loaded at a time")
parser.add_argument("--embed-seconds", type=int, default=4, help="how long MiniLM is loaded at a time")
parser.add_argument("--only", choices=CASES, nargs="*", default=CASES, help="leave the other cases out; keeps nothing")
options = parser.parse_args()
if options.install:
    peers.install()
    sys.exit(0)
found = main(
    rounds=options.rounds, seconds=options.seconds, embed_seconds=options.embed_seconds, only=tuple(options.only)
)
sys.stdout.write(json.dumps(found["summary"], indent=1) + "\n")
if set(options.only) == set(CASES):
    PAGE.write_text(page())
