"""`python -m benchmarks.gpu`: weights onto a GPU, packed encoding, servers beside their peers, fine-tuning."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, keep, machine, median
from benchmarks.serving import peers
from benchmarks.serving.load import wrk
from benchmarks.serving.processes import free_port, process, wait_for
from benchmarks.train.run import compare, prepare
from gpuserve.models.embeddings import LONGEST
from gpuserve.quickstart.corpus import standard_library_docstrings

__all__ = ["CASES", "main"]

CASES = ("load", "train", "generate", "embed", "encode")
_LOADS = ("load", "load_transformers", "load_safetensors", "copy")
# Plain FastAPI, which generates for one caller at a time and as many threads, answered none of 32 in half a minute.
_SERVERS = {"embed": ("ours", "lit", "plain_fastapi"), "generate": ("ours", "lit")}
_DTYPES = ("float32", "bfloat16")
_START_S = 120.0
_SECONDS = {"embed": 4, "generate": 20}
_Raw = dict[str, list[dict[str, Any]]]


def main(*, rounds: int = 3, only: Sequence[str] = CASES) -> dict[str, Any]:
    """Measure; keep the figures, and those of the cases that are left out as they were.

    Args:
        rounds: How often each side is measured.
        only: The cases.
    """
    kept = RESULTS / "gpu.json"
    before: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    raw: _Raw = {name: one for name, one in before.get("raw", {}).items() if name.partition(":")[0] not in only}
    with tempfile.TemporaryDirectory(prefix="gsb") as folder:
        llama = f"{folder}/llama"
        if set(only) & {"load", "train", "generate"}:
            _say(_run("make", llama))
        for case in only:
            for name, found in _case(case, Path(folder), llama, rounds):
                raw.setdefault(f"{case}:{name}", []).append(found)
                _say({case: name, **found})
    report = {
        "machine": _machine(),
        "counts": {"rounds": rounds, "clients": 32},
        "peers": {"lit": "litserve 0.2.19"},
        "summary": _summary(raw),
        "raw": raw,
    }
    keep("gpu", report)
    return report


def _case(case: str, folder: Path, llama: str, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if case == "load":
        yield from _loads(llama, rounds)
    elif case == "encode":
        for dtype in _DTYPES:
            yield dtype, _run("encode", dtype)
    elif case == "train":
        prepare(folder)
        for number in range(rounds):
            for name in ("lora", "qlora"):
                told = {"number": number, "steps": 30, "every": 10, "llama": llama, "four_bit": name == "qlora"}
                for side, found in compare(folder, told).items():
                    yield f"{name}:{side}", found
    else:
        yield from _served(case, folder, llama, rounds)


def _loads(llama: str, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every load by a process of its own, which has its GPU ready before the clock runs."""
    for _ in range(rounds):
        with contextlib.ExitStack() as stack:
            waiting = {name: stack.enter_context(_task(name, llama)) for name in _LOADS}
            for one in waiting.values():
                _until_ready(one)
            for name, one in waiting.items():
                yield name, _go(one)


def _served(case: str, folder: Path, llama: str, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    key, bodies, log = secrets.token_urlsafe(24), folder / f"{case}.jsonl", folder / f"{case}-requests.jsonl"
    texts = [one.text[: LONGEST if case == "embed" else 200] for one in standard_library_docstrings()]
    bodies.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    environment = {"GPUSERVE_API_KEYS": f"bench:{key}", "BENCH_LLAMA": llama}
    urls = {}
    with contextlib.ExitStack() as stack:
        for name in _SERVERS[case]:
            port = free_port()
            command = [sys.executable, str(peers.PROGRAMS / f"{name}.py"), case, str(port)]
            if name == "ours":
                command = [sys.executable, "-m", "benchmarks.serving.ours", case, str(port), str(log)]
            sink = stack.enter_context((folder / f"{case}-{name}.log").open("w"))
            stack.enter_context(process(command, environment, sink))
            method = "embed" if (name, case) == ("ours", "embed") else "predict"
            urls[name] = f"http://127.0.0.1:{port}/{method}"
        for name, url in urls.items():
            try:
                wait_for(url, key, _START_S)
            except RuntimeError:
                sys.stderr.write((folder / f"{case}-{name}.log").read_text()[-4000:])
                raise
        for number in range(rounds):
            for name in _SERVERS[case][:: 1 if number % 2 == 0 else -1]:
                if number == 0 and case == "embed":
                    wrk(urls[name], bodies, key=key, seconds=1)
                yield name, wrk(urls[name], bodies, key=key, seconds=_SECONDS[case], seed=number, timeout_s=60)


@contextlib.contextmanager
def _task(name: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.gpu.tasks", name, argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def _run(name: str, argument: str) -> dict[str, Any]:
    with _task(name, argument) as running:
        if name == "make":
            return _last(running)
        _until_ready(running)
        return _go(running)


def _until_ready(running: subprocess.Popen[str]) -> None:
    for line in running.stdout or ():
        if line == "ready\n":
            return
    raise RuntimeError(f"{running.args!r} ended with {running.wait()}")


def _go(running: subprocess.Popen[str]) -> dict[str, Any]:
    if running.stdin is None:
        raise RuntimeError("no pipe")
    running.stdin.write("go\n")
    running.stdin.flush()
    return _last(running)


def _last(running: subprocess.Popen[str]) -> dict[str, Any]:
    lines = list(running.stdout) if running.stdout is not None else []
    if running.wait() or not lines:
        raise RuntimeError(f"{running.args!r} ended with {running.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _say(found: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(found) + "\n")


def _machine() -> dict[str, Any]:
    about = machine(("gpuserve", "fastapi", "uvicorn", "torch", "transformers", "sentence-transformers", "peft", "trl"))
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    about["processor"] += (
        " and one " + subprocess.run(query, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    )
    return about


def _summary(raw: _Raw) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []

    def line(what: str, ours: float, floor: float, unit: str, *, more: bool = True) -> None:
        lines.append(
            {"what": what, "ours": ours, "floor": floor, "unit": unit, "ratio": ours / floor, "more_is_better": more}
        )

    def value(name: str, key: str) -> float:
        return median([one[key] for one in raw[name]])

    if "load:load" in raw:
        speed = {name: raw[f"load:{name}"][0]["bytes"] / value(f"load:{name}", "seconds") / 1e9 for name in _LOADS}
        for name, what in (
            ("copy", "one copy of as many bytes from pinned memory"),
            ("load_safetensors", "safetensors' load_file"),
            ("load_transformers", "transformers' from_pretrained"),
        ):
            line(
                f"1.1 billion parameters in bf16 from the page cache: load_into / {what}",
                speed["load"],
                speed[name],
                "GB/s",
            )
    for dtype in _DTYPES:
        if f"encode:{dtype}" in raw:
            ours = value(f"encode:{dtype}", "docs_per_s")
            for batch in (32, 256):
                beside = value(f"encode:{dtype}", f"encode_{batch}_per_s")
                line(f"MiniLM, {dtype}, packed / encode, batches of {batch}", ours, beside, "docs/s")
    for case, what in (("embed", "MiniLM"), ("generate", "Llama of 1.1 billion, 32 tokens")):
        for name, peer in (("plain_fastapi", "plain FastAPI"), ("lit", "LitServe")):
            if f"{case}:{name}" in raw:
                ours, beside = (value(f"{case}:{one}", "per_s") for one in ("ours", name))
                line(f"{what}, 32 clients / {peer}", ours, beside, "req/s")
                ours, beside = (value(f"{case}:{one}", "p99_ms") for one in ("ours", name))
                line(f"{what}, p99 / {peer}", ours, beside, "ms", more=False)
    for name, what in (("lora", "LoRA in bf16"), ("qlora", "QLoRA")):
        if f"train:{name}:ours" in raw:
            ours, bare = (value(f"train:{name}:{side}", "steps_per_s") for side in ("ours", "bare"))
            line(f"FineTuneJob, {what}, checkpoints on / bare SFTTrainer", ours, bare, "steps/s")
    return lines
