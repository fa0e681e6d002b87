"""`python -m benchmarks overload`: 64 places and 500 callers, beside the same server with as many callers as places."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import keep, machine, median
from benchmarks.serving import peers
from benchmarks.serving.processes import free_port, process

__all__ = ["main"]

PLACES, _CALLERS = 64, 500
# Source: reference R1 of the project's reliability goals.
_REFUSED_MS, _SLOWER, _GROWTH_MIB = 50.0, 2.0, 50.0
_START_S = 60.0
_P99 = 0.99


def main(*, rounds: int = 3, seconds: int = 8) -> dict[str, Any]:
    """Load ours and plain FastAPI in turn, first with as many callers as places, then with far more.

    Args:
        rounds: How often.
        seconds: How long each load is measured.
    """
    raw: dict[str, list[dict[str, Any]]] = {"ours": [], "plain_fastapi": []}
    with tempfile.TemporaryDirectory(prefix="gsb") as folder:
        for number in range(rounds):
            for name in list(raw)[:: 1 if number % 2 == 0 else -1]:
                raw[name].append(_round(name, Path(folder), seconds, number))
                sys.stderr.write(f"round {number} {name}: {_brief(raw[name][-1])}\n")
    report = {
        "machine": machine(("gpuserve", "fastapi", "uvicorn", "uvloop", "httptools")),
        "counts": {"rounds": rounds, "places": PLACES, "callers": _CALLERS, "seconds": seconds},
        "summary": _summary(raw),
        "raw": raw,
    }
    keep("overload", report)
    return report


def _round(name: str, folder: Path, seconds: int, number: int) -> dict[str, Any]:
    key, port = secrets.token_urlsafe(24), free_port()
    if name == "ours":
        command = [sys.executable, "-m", "benchmarks.serving.ours", "slow", str(port), str(folder / "requests.jsonl")]
    else:
        command = [sys.executable, str(peers.PROGRAMS / "plain_fastapi.py"), "slow", str(port)]
    url = f"http://127.0.0.1:{port}/predict"
    with (folder / f"{name}.log").open("w") as log, process(command, {"GPUSERVE_API_KEYS": f"bench:{key}"}, log) as one:
        _wait(url, key)
        server = psutil.Process(one.pid)
        alone = _load(url, key, PLACES // 2, seconds, number)
        before = server.memory_info().rss
        crowd = _load(url, key, _CALLERS, seconds, number)
        growth = server.memory_info().rss - before
    if crowd["others"] or alone["others"] or alone["refused"]:
        raise RuntimeError(f"{name} answered otherwise than was asked: {alone['others']}, {crowd['others']}")
    return {
        "alone_p99_ms": _p99_ms(alone["answered"]),
        "alone_per_s": len(alone["answered"]) / seconds,
        "crowd_p99_ms": _p99_ms(crowd["answered"]),
        "crowd_per_s": len(crowd["answered"]) / seconds,
        "refused_p99_ms": _p99_ms(crowd["refused"]),
        "refused": len(crowd["refused"]),
        "growth_mib": growth / 2**20,
    }


def _load(url: str, key: str, clients: int, seconds: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.overload.callers", url, key, str(clients), str(seconds), str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _wait(url: str, key: str) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, b'{"input": "hello"}', headers)  # noqa: S310 (loopback)
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer within {_START_S:g} s")


def _p99_ms(spent: list[float]) -> float:
    return 1000 * sorted(spent)[round(_P99 * (len(spent) - 1))]


def _brief(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())


def _summary(raw: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    def figure(name: str, key: str) -> float:
        return median([one[key] for one in raw[name]])

    def line(what: str, ours: float, floor: float, unit: str, bar: float | None) -> dict[str, Any]:
        return {"what": what, "ours": ours, "floor": floor, "unit": unit, "ratio": ours / floor, "bar": bar}

    def lines(name: str, called: str, *, raced: bool) -> list[dict[str, Any]]:
        refused, growth = figure(name, "refused_p99_ms"), figure(name, "growth_mib")
        crowd, alone = figure(name, "crowd_p99_ms"), figure(name, "alone_p99_ms")
        found = [
            line(f"{called}: refusal, p99 / 50 ms", refused, _REFUSED_MS, "ms", 1.0),
            line(f"{called}: who is taken, p99 / without the crowd", crowd, alone, "ms", _SLOWER),
            line(f"{called}: memory, growth / 50 MiB", growth, _GROWTH_MIB, "MiB", 1.0),
        ]
        return found if raced else [{**one, "bar": None} for one in found]

    ours, theirs = figure("ours", "crowd_per_s"), figure("plain_fastapi", "crowd_per_s")
    return [
        *lines("ours", "ours", raced=True),
        *lines("plain_fastapi", "plain FastAPI", raced=False),
        {**line("answers a second / plain FastAPI", ours, theirs, "/s", None), "more_is_better": True},
    ]
