"""The newest figures as the docs show them: `docs/benchmarks.md` is written from the raw JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """# Benchmarks

Written by `python -m benchmarks` from the raw figures in `benchmarks/results`; do not edit. Both sides of a line were
measured in one run, in alternating order; each figure is the median of the rounds. Measure again with
`nox -s bench`, or `nox -s bench -- engine`.
"""
_TITLES = {
    "engine": "The local engine",
    "quickstart": "The quickstart",
    "serving": "Serving over HTTP",
    "overload": "More callers than places",
    "train": "Fine-tuning",
    "weights": "Weights",
    "batch": "Batch runs",
    "jobs": "Schedules",
    "gpu": "On a GPU",
}
_ABOUT = {
    "engine": """
The floor is a null servicer (`benchmarks/engine/null_servicer.py`): it answers the same modal client and the same
container runtime and does nothing else - no token, store, idempotency, isolation, scaling or logs - so what it takes is
Modal's own share. Its containers are plain starts; the engine's are forked from one that has imported the runtime, but
for the line of a plain start, whose image sets a variable that an interpreter reads as it starts.
""",
    "quickstart": """
The floor is `SentenceTransformer.encode` with its defaults over the same docstrings, in one process and without any
engine. Ours is the whole way: client, engine, Modal's runtime, the batcher and back.
""",
    "serving": """
wrk with 32 connections that each wait for their answer, on the same two cores as what it asks. Ours is a class with
`transport="server"`, asked at its own port, with keys, rate limits, metrics and the request log (to a file, and checked
to be whole) on; the peers do none of that. All run in a process of their own: plain FastAPI on uvicorn with uvloop and
httptools (one `encode` a request in its thread pool), LitServe (for MiniLM batches of 32 that wait 5 ms), Ray Serve and
BentoML with one worker. MiniLM reads the standard library's docstrings in random order; every side's vectors are first
found equal to `encode`'s within 1e-5. The bare matrix products are those of the model's dense layers for the same
tokens. One client and the model alone are asked in turns of four texts when the peers have gone, because LitServe is
busy while it idles. `wrk` comes from Debian (`apt-get install wrk`), the peers from
`python -m benchmarks.serving --install`.
""",
    "overload": """
A model that takes 50 ms for a batch of up to 64, a queue of 64, and 500 callers that each keep a connection, ask again
as soon as they are answered, and where they are refused come back after what `Retry-After` says, all from one process
on the same two cores. "Without the crowd" is the same with 32 callers. Plain FastAPI waits in its thread pool of 40,
with uvicorn's `limit_concurrency` of 64, which counts connections and closes those that it refuses.
""",
    "train": """
A Llama of 7 million parameters with LoRA on a CPU, text of the standard library; each figure from a process of its own,
from the first step to the last checkpoint. Both write a checkpoint every 20 steps and keep two. Ours also syncs each,
hashes each file, writes its manifest and the report, and looks at loss and gradient before each step; the bare trainer
writes its model card. They take turns of a few steps, because neighbours on the machine come and go; the figures are
those of the round with the median ratio. Both sides must end with the same loss to the last digit, or nothing is kept.
""",
    "weights": """
Random safetensors in the page cache, each figure from a process of its own. Verifying reads and hashes every file and
checks every header, with as many threads as there are cores; its floor is the bare hash of the same files, as many at
once, by hashlib or by `sha256sum`, whichever is faster. "Mapping" is `load_into`, which copies nothing; "copying" also
copies every byte once, as a device would have it, and shares the cores with the verification. Our fetch hashes what
comes as it comes, syncs it and publishes it; the hub's own client downloads into its cache, followed by the hash alone.
Verifying keeps every core busy, so that a copy beside it is paid for in full where there are no spare cores.
""",
    "batch": """
Ours is a whole run of a `BatchMapper`: read from JSON lines, through the engine and Modal's runtime into a container
with the embeddings server, committed as Parquet with its ledger. Offline `encode` and Ray Data (one actor with the
model and both cores) run on the same texts in processes of their own and keep nothing. The guide's listing runs on the
same engine, on today's API, and loads its model for each chunk of 128: as it stands, with up to 20 containers of 4
inputs, which here share two cores; in two containers of one input, whose threads sleep while they wait; and so with
each chunk as one batch, padded to its longest text, which is what the goal of 5 was reckoned from (ADR 0006).
Models are loaded and containers warm before the clock runs, save the guide's. All vectors are found equal within 1e-4.
The no-op runs in two containers of the engine and commits JSON lines; Huey has four worker processes, Celery two, a
Redis that syncs its log every second, and late acknowledgement. A kill costs the peers what their way to acknowledge
says; ours is tested. A resumed run of a million items with ids, 995,000 of them committed, is timed to the first batch
that it sends. Memory is the driver's own, over a function of its process. Redis comes from Debian, the peers from
`python -m benchmarks.batch --install`.
""",
    "jobs": """
One app with 500 functions, each with `modal.Cron("* * * * *")`, so that all are due at the same second; how long after
it each input was queued in the engine. The containers that they start, one a function, run on the same cores. Beside it
stands the goal, 200 ms; no peer was measured.
""",
    "gpu": """
`python -m benchmarks.gpu`, when there is a GPU. Weights: 2.2 GB of safetensors in the page cache, onto the GPU, each
figure from a process of its own that has its GPU ready. Fine-tuning: a random Llama of 1.1 billion parameters, 30 steps
of 8 rows with a checkpoint every 10 (which ours also hashes and syncs; real runs write them more rarely), both sides in
turns of a few steps; both ended with the same loss to the last digit. How a server with MiniLM and one with that Llama
do beside LitServe and plain FastAPI is part of the same command; the figures that there are belong to a way of
attention that is no more, and stand in `docs/performance-log.md`.
""",
}


def page() -> str:
    """The whole page.

    What was not measured yet is left out.
    """
    parts = [_HEAD]
    for name, about in _ABOUT.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        report: dict[str, Any] = json.loads(path.read_text())
        parts.append(f"## {_TITLES[name]}\n{about}\n{_machine(report)}\n\n{_table(report['summary'])}\n")
    return "\n".join(parts)


def _machine(report: dict[str, Any]) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    counts = ", ".join(f"{name} {value}" for name, value in report["counts"].items())
    beside = ", ".join(report.get("peers", {}).values())
    versions += f"; peers: {beside}" if beside else ""
    load = about["load_average"][0]
    return (
        f"{about['at'][:10]}, {about['cores']} cores of {about['processor']}, Python {about['python']}, {versions}; "
        f"{counts}; load average at the end {load:.1f}."
    )


def _table(lines: list[dict[str, Any]]) -> str:
    rows = ["| what | ours | beside it | ratio | bar |", "|---|---|---|---|---|"]
    for line in lines:
        sign = "≥" if line.get("more_is_better") else "≤"
        ours, floor = (f"{line[key]:.4g} {line['unit']}" for key in ("ours", "floor"))
        bar = f"{sign} {line['bar']:g}" if line.get("bar") else ""
        rows.append(f"| {line['what']} | {ours} | {floor} | {line['ratio']:.2f} | {bar} |")
    return "\n".join(rows)
