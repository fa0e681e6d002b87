"""`python -m benchmarks.train`: the same as `python -m benchmarks train`."""

import sys

from benchmarks.__main__ import main

if __name__ == "__main__":
    sys.argv[1:] = ["train", *sys.argv[1:]]
    sys.exit(main())
