"""`python -m benchmarks.gpu`: this benchmark, on a machine with a GPU; needs litserve and bitsandbytes beside it."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.gpu.run import CASES, main
from benchmarks.table import PAGE, page

parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
parser.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
parser.add_argument("--only", choices=CASES, nargs="*", default=CASES, help="measure these anew, and keep the others")
options = parser.parse_args()
found = main(rounds=options.rounds, only=tuple(options.only))
sys.stdout.write(json.dumps(found["summary"], indent=1) + "\n")
PAGE.write_text(page())
