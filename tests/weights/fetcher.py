"""A process that forks fetchers on request, so that each costs milliseconds: JSON lines in, JSON lines out."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import huggingface_hub.file_download
import huggingface_hub.hf_api  # noqa: F401
from huggingface_hub import constants

from gpuserve.runtime.lease import FileLease, NoLease
from gpuserve.runtime.ports import PlainFolder
from gpuserve.runtime.weights.fetch import FetchRun
from gpuserve.runtime.weights.store import WeightsStore
from gpuserve.specs.source import HubSource

# Each of these audited steps may be the last one of a killed fetch.
_STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock", "os.listdir")


def fetch(job: dict[str, Any]) -> dict[str, Any]:
    os.environ["HF_ENDPOINT"] = job["endpoint"]
    constants.DOWNLOAD_CHUNK_SIZE = job.get("chunk", 4096)
    store = WeightsStore(Path(job["root"]))
    steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal steps
        if event in _STEPS and (event == "fcntl.flock" or str(arguments[0]).startswith(job["root"])):
            steps += 1
            if steps == job.get("kill_at_step"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    lease = FileLease(store.incomplete) if job.get("lease") else NoLease()
    report = FetchRun(store, HubSource("org/model", revision=job["revision"]), PlainFolder(), lease).run()
    return {
        "published": report.published, "fetched": report.fetched, "resumed": report.resumed,
        "snapshot": report.snapshot, "steps": steps,
    }  # fmt: skip


def child(job: dict[str, Any], place: int) -> None:
    out = Path(job["out"]) / f"{place}.json"
    try:
        found = fetch(job)
    except BaseException as error:
        found = {"error": type(error).__name__, "text": traceback.format_exc()}
    out.write_text(json.dumps(found))


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for place in range(job.get("count", 1)):
            pid = os.fork()
            if pid == 0:
                os.close(0)
                child(job, place)
                os._exit(0)
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        print(json.dumps({"codes": [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]}), flush=True)


if __name__ == "__main__":
    main()
