"""`python -m benchmarks engine`: the engine and the null servicer in turn, medians of the rounds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import keep, machine, median

__all__ = ["main"]

_WORKLOAD = Path(__file__).with_name("workload.py")
# What the project set itself: the engine may add a quarter to what Modal's own client and runtime take.
_BAR, _IMPORT_BAR = 1.25, 1.15
_COLD_BAR_MS = 100.0


def main(*, rounds: int = 3, cold: int = 12, warm: int = 300, mapped: int = 10_000) -> dict[str, Any]:
    """Measure both in each round, ours first in one and last in the next; keep every figure."""
    raw: dict[str, list[dict[str, Any]]] = {"engine": [], "null": []}
    for number in range(rounds):
        order = ("engine", "null") if number % 2 == 0 else ("null", "engine")
        for name in order:
            with _ENVIRONMENTS[name]() as environment:
                raw[name].append(_measure(environment, cold, warm, mapped))
                sys.stderr.write(f"round {number} {name}: {_brief(raw[name][-1], mapped)}\n")
    imports = _imports()
    report = {
        "machine": machine(("modal", "gpuserve", "grpclib", "h2")),
        "counts": {"rounds": rounds, "cold": cold, "warm": warm, "mapped": mapped},
        "summary": _summary(raw, imports, mapped),
        "raw": {**raw, "import_s": imports},
    }
    keep("engine", report)
    return report


@contextlib.contextmanager
def _engine() -> Iterator[dict[str, str]]:
    """An engine in a process of its own, as `gpuserve local up` has it."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "gpuserve.engine", "--home", home]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            line = process.stdout.readline() if process.stdout else ""
            note = json.loads(line)
            yield {key: value for key, value in note.items() if key.startswith("MODAL_")}
            process.terminate()


@contextlib.contextmanager
def _null() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/null.sock"
        command = [sys.executable, "-m", "benchmarks.engine.null_servicer", socket, str(_WORKLOAD.parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise RuntimeError("the null servicer did not start")
            yield {
                "MODAL_SERVER_URL": f"unix://{socket}",
                "MODAL_TOKEN_ID": "ak-null",
                "MODAL_TOKEN_SECRET": "as-null",
                "MODAL_CONFIG_PATH": f"{folder}/modal.toml",
            }
            process.terminate()


_ENVIRONMENTS = {"engine": _engine, "null": _null}


def _measure(environment: dict[str, str], cold: int, warm: int, mapped: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, str(_WORKLOAD), str(report), str(cold), str(warm), str(mapped)],
            env={**os.environ, **environment},
            check=True,
            timeout=600,
        )
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def _imports(rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of a whole interpreter that only imports, one after the other in each round."""
    programs = {
        "nothing": "pass",
        "modal": "import modal",
        "gpuserve": "import gpuserve",
        "both": "import modal, gpuserve",
        "builders": "import modal; from gpuserve import WarmModelServer, register, ImageSpec, Http",
    }
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], check=True)
            spent[name].append(time.perf_counter() - begun)
    return spent


def _brief(found: dict[str, Any], mapped: int) -> str:
    return (
        f"cold {1000 * median(found['cold_s']):.0f} ms, plain {1000 * median(found['plain_s']):.0f} ms, "
        f"warm {1000 * median(found['warm_s']):.2f} ms, "
        f"map {mapped / found['map_one_s']:.0f}/s in one, {mapped / found['map_several_s']:.0f}/s in several"
    )


def _summary(
    raw: dict[str, list[dict[str, Any]]], imports: dict[str, list[float]], mapped: int
) -> list[dict[str, Any]]:
    def figure(name: str, key: str, scale: float) -> float:
        parts = [median(one[key]) if isinstance(one[key], list) else one[key] for one in raw[name]]
        return scale * median(parts)

    def line(what: str, ours: float, floor: float, unit: str, bar: float | None) -> dict[str, Any]:
        return {"what": what, "ours": ours, "floor": floor, "unit": unit, "ratio": ours / floor, "bar": bar}

    def pair(what: str, key: str, unit: str, scale: float) -> dict[str, Any]:
        return line(what, figure("engine", key, scale), figure("null", key, scale), unit, _BAR)

    cold = figure("engine", "cold_s", 1000)
    lines = [
        # like with like: both start an interpreter. The forked call below it has a bar of its own, in milliseconds
        pair("cold call that needs a plain start / a plain start", "plain_s", "ms", 1000),
        pair("cold call of a trivial function, pre-forked / a plain start", "cold_s", "ms", 1000),
        line("cold call of a trivial function, pre-forked / 100 ms", cold, _COLD_BAR_MS, "ms", 1.0),
        pair("warm .remote()", "warm_s", "ms", 1000),
        pair(f".map of {mapped:,}, one container", "map_one_s", "s", 1),
        pair(f".map of {mapped:,}, several containers", "map_several_s", "s", 1),
    ]
    bare = 1000 * median(imports["modal"])
    named = (
        ("gpuserve", "import gpuserve / import modal", _IMPORT_BAR),
        ("both", "import modal, gpuserve / import modal", _IMPORT_BAR),
        ("builders", "import modal and every builder / import modal", None),
    )
    return lines + [line(what, 1000 * median(imports[name]), bare, "ms", bar) for name, what, bar in named]
