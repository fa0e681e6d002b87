"""Documents to try it with: docstrings of the standard library and of every package that is installed here."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

from gpuserve.quickstart.corpus import standard_library_docstrings

COUNT = 50_000
LONGEST = 20_000


def write(path: Path, count: int) -> int:
    """Write at most *count* documents as JSON lines; how many there were."""
    found = standard_library_docstrings()
    packages = sorted(one for one in Path(sysconfig.get_paths()["purelib"]).iterdir() if one.is_dir())
    while len(found) < count and packages:
        found += standard_library_docstrings(packages.pop(0))
    with path.open("w", encoding="utf-8") as file:
        for number, one in enumerate(found[:count]):
            # a package may define one name twice, so that the number is the id and the name stands beside it
            row = {"id": number, "name": one.name, "text": one.text[:LONGEST]}
            file.write(json.dumps(row) + "\n")
    return min(count, len(found))


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else COUNT)} documents")  # noqa: PLR2004
