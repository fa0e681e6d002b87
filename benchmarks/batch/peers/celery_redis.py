"""Celery on Redis, acknowledged late so that nothing is lost: tasks of n items, from the first put to the last."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
from celery import Celery
app = Celery("bench", broker={url!r}, backend={url!r})
app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=4)

@app.task(name="bench.nothing")
def nothing(items):
    return items
"""


def main(count: int, chunk: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="gsb") as folder:
        # its log is synced every second, as Redis advises where a second's work may be lost
        server = [shutil.which("redis-server") or "redis-server", "--port", str(port), "--bind", "127.0.0.1"]
        redis = subprocess.Popen(
            [*server, "--dir", folder, "--appendonly", "yes", "--appendfsync", "everysec", "--loglevel", "warning"]
        )
        Path(folder, "tasks.py").write_text(PROGRAM.format(url=f"redis://127.0.0.1:{port}/0"))
        sys.path.insert(0, folder)
        import tasks

        command = [sys.executable, "-m", "celery", "-A", "tasks.app", "worker", "-c", "2", "-l", "ERROR"]
        worker = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            tasks.nothing.delay([0]).get(timeout=60)
            began = time.perf_counter()
            chunks = [list(range(place, min(place + chunk, count))) for place in range(0, count, chunk)]
            results = [tasks.nothing.delay(one) for one in chunks]
            answers = [item for one in results for item in one.get(timeout=300)]
            seconds = time.perf_counter() - began
        finally:
            worker.terminate()
            worker.wait(30)
            redis.terminate()
            redis.wait(30)
    if answers != list(range(count)):
        raise RuntimeError("an answer is missing")
    sys.stdout.write(json.dumps({"seconds": seconds, "items": count}) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
