"""A driver as a process of its own, to be killed: ``driver.py CORPUS OUTPUT WINDOW ITEMS``."""

import faulthandler
import json
import os
import sys
import time
from pathlib import Path

import modal

import gpuserve
from gpuserve.runtime.batch.events import RunStarted

corpus, output, window, items = sys.argv[1:5]
faulthandler.enable()  # SIGABRT tells where it is, if it does not end


def tell(event):
    if isinstance(event, RunStarted):
        with Path(os.environ["STARTS"]).open("a") as starts:
            starts.write(f"{time.monotonic() - began:.3f}\n")
        print(json.dumps({"started": event.epoch, "done": event.done}), flush=True)


mapper = gpuserve.BatchMapper(
    target=modal.Function.from_name("mapped", "digests"),
    source=gpuserve.Jsonl(corpus, id_field="id", input_field="text"),
    output=output,
    batching=gpuserve.MapBatching(window=int(window), max_items=int(items)),
    retries=gpuserve.MapRetries(max_attempts=2, initial_delay_s=0.05),
)
began = time.monotonic()
try:
    report = mapper.run(on_event=tell)
except gpuserve.GpuserveError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}), flush=True)
    sys.exit(4)
print(json.dumps({"status": report.status, "done": report.done, "failed": report.failed, "retries": report.retries}))
