"""`python -m benchmarks.weights`: the same as `python -m benchmarks weights --rounds 5`."""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.argv[1:] = ["weights", "--rounds", "5", *sys.argv[1:]]
    sys.exit(main())
