"""Huey on SQLite: one task an item, four workers, results stored; from the first task put to the last result read."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
from huey import SqliteHuey
huey = SqliteHuey("bench", filename={path!r})

@huey.task()
def nothing(item):
    return item
"""


def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gsb") as folder:
        Path(folder, "tasks.py").write_text(PROGRAM.format(path=f"{folder}/huey.db"))
        sys.path.insert(0, folder)
        import tasks

        command = [sys.executable, "-m", "huey.bin.huey_consumer", "tasks.huey", "-w", "4", "-k", "process", "-q"]
        worker = subprocess.Popen(command, cwd=folder)
        try:
            tasks.nothing(0)(blocking=True, timeout=60)
            began = time.perf_counter()
            results = [tasks.nothing(number) for number in range(count)]
            answers = [one(blocking=True, timeout=300) for one in results]
            seconds = time.perf_counter() - began
        finally:
            worker.terminate()
            worker.wait(30)
    if answers != list(range(count)):
        raise RuntimeError("an answer is missing")
    sys.stdout.write(json.dumps({"seconds": seconds, "items": count}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
