"""`python -m benchmarks batch`: whole runs of a BatchMapper beside what else embeds a corpus, or queues tasks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.batch.peers import ENVIRONMENTS
from benchmarks.record import RESULTS, keep, machine, median
from gpuserve.quickstart.corpus import standard_library_docstrings

__all__ = ["CASES", "main"]

CASES = ("embed", "queue", "ledger", "memory")
_SEED = 20261125
_PROGRAMS = Path(__file__).parent / "peers"
_CHUNK = 128
_TOLERANCE = 1e-4
_RAY_BATCH = 256
_PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
_Raw = dict[str, list[dict[str, Any]]]


def main(*, rounds: int = 3, documents: int = 1280, items: int = 30_000, only: Sequence[str] = CASES) -> dict[str, Any]:
    """Measure every side in each round, in alternating order; keep every figure.

    Args:
        rounds: How often each side is measured.
        documents: How many docstrings are embedded.
        items: How many items go through the queues; a tenth of them where each is a task of its own.
        only: Cases to measure; the figures of the others are kept as they were.
    """
    before: dict[str, Any] = {}
    kept = RESULTS / "batch.json"
    if kept.exists() and set(only) != set(CASES):
        before = json.loads(kept.read_text())
    raw: _Raw = {name: one for name, one in before.get("raw", {}).items() if name.partition(":")[0] not in only}
    with tempfile.TemporaryDirectory(prefix="gsb") as folder, _engine(Path(folder)) as environment:
        for number in range(rounds):
            for case in only:
                for name, side in _order(_sides(case, Path(folder), documents, items), number):
                    found = side(environment)
                    raw.setdefault(f"{case}:{name}", []).append(found)
                    sys.stderr.write(f"round {number} {case} {name}: {_told(found)}\n")
    if "embed" in only:
        _same(raw)
    report = {
        "machine": machine(("modal", "gpuserve", "torch", "sentence-transformers", "transformers", "pyarrow")),
        "peers": {
            "ray_data": ENVIRONMENTS.versions("ray_data", ["ray"]),
            "huey": ENVIRONMENTS.versions("huey_sqlite", ["huey"]),
            "celery": ENVIRONMENTS.versions("celery_redis", ["celery", "redis"]),
        },
        "counts": {"rounds": rounds, "documents": documents, "items": items},
        "summary": _summary(raw),
        "raw": {name: [_without_vectors(one) for one in found] for name, found in raw.items()},
    }
    keep("batch", report)
    return report


_Side = Callable[[dict[str, str]], dict[str, Any]]


def _sides(case: str, folder: Path, documents: int, items: int) -> list[tuple[str, _Side]]:
    corpus, run = folder / "documents.jsonl", str(folder / "million")
    if case == "embed":
        if not corpus.exists():
            _write(corpus, documents)
        return [
            ("ours", _own("ours", str(corpus))),
            ("encode", _own("encode", str(corpus))),
            ("guide", _own("guide", str(corpus))),
            ("guide_fitted", _own("guide_fitted", str(corpus))),
            ("guide_whole", _own("guide_whole", str(corpus))),
            ("ray", _peer("ray_data", str(corpus), str(_RAY_BATCH))),
        ]
    if case == "queue":
        few = str(items // 10)
        return [
            ("ours", _own("durable", str(items), str(_CHUNK))),
            ("huey", _peer("huey_sqlite", few)),
            ("celery", _peer("celery_redis", few, "1")),
            ("celery_chunks", _peer("celery_redis", str(items), str(_CHUNK))),
        ]
    if case == "ledger":
        return [("resume", lambda environment: _resumed(run, environment))]
    return [("10000", _own("memory", "10000")), ("1000000", _own("memory", "1000000"))]


def _resumed(run: str, environment: dict[str, str]) -> dict[str, Any]:
    subprocess.run(["/bin/rm", "-rf", run], check=True)
    _json([sys.executable, "-m", "benchmarks.batch.sides", "ledger", run, "1000000"], environment)
    return _json([sys.executable, "-m", "benchmarks.batch.sides", "resume", run], environment)


def _own(name: str, *arguments: str) -> _Side:
    command = [sys.executable, "-m", "benchmarks.batch.sides", name, *arguments]
    return lambda environment: _json(command, {**environment, **_PASSIVE})


def _peer(name: str, *arguments: str) -> _Side:
    command = [ENVIRONMENTS.python(name), str(_PROGRAMS / f"{name}.py"), *arguments]
    # threads that wait for each other sleep on every side: on a shared machine spinning would measure the neighbours
    return lambda _environment: _json(command, {**os.environ, **_PASSIVE})


def _json(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, timeout=1800)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _order(sides: list[tuple[str, _Side]], number: int) -> list[tuple[str, _Side]]:
    return sides if number % 2 == 0 else sides[::-1]


def _write(path: Path, documents: int) -> None:
    found = standard_library_docstrings()
    chosen = random.Random(_SEED).sample(found, min(documents, len(found)))  # noqa: S311 (no secret)
    rows = [{"id": place, "text": one.text[:20_000]} for place, one in enumerate(chosen)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextlib.contextmanager
def _engine(folder: Path) -> Iterator[dict[str, str]]:
    """An engine of our own, with the apps deployed; the environment of who calls it."""
    command = [sys.executable, "-m", "gpuserve.engine", "--home", str(folder / "engine")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            told = {name: value for name, value in json.loads(line).items() if name.startswith("MODAL_")}
            environment = {**os.environ, **told}
            deploy = [sys.executable, "-m", "modal", "deploy", "-m", "benchmarks.batch.deployed"]
            subprocess.run(deploy, env=environment, check=True, stdout=subprocess.DEVNULL)
            yield environment
        finally:
            process.terminate()


def _same(raw: _Raw) -> None:
    """Every side has answered the same.

    Raises:
        RuntimeError: If not.
    """
    for one in raw["embed:encode"]:
        plain = one["vectors"]
        for name in ("ours", "guide", "guide_fitted", "guide_whole", "ray"):
            for other in raw[f"embed:{name}"]:
                pairs = [
                    (a, b) for x, y in zip(plain, other["vectors"], strict=True) for a, b in zip(x, y, strict=True)
                ]
                largest = max(abs(a - b) for a, b in pairs)
                if largest > _TOLERANCE:
                    raise RuntimeError(f"{name} differs from encode by {largest}")


def _without_vectors(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "vectors"}


def _told(found: dict[str, Any]) -> str:
    return json.dumps({name: round(value, 3) for name, value in _without_vectors(found).items()})


def _rate(raw: _Raw, name: str) -> float:
    return median([one["items"] / one["seconds"] for one in raw[name]])


def _summary(raw: _Raw) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []

    def line(what: str, ours: float, floor: float, unit: str, bar: float | None, *, more: bool = True) -> None:
        found = {"what": what, "ours": ours, "floor": floor, "unit": unit, "ratio": ours / floor}
        lines.append({**found, "bar": bar, "more_is_better": more})

    if "embed:ours" in raw:
        ours = _rate(raw, "embed:ours")
        for name, what, bar in (
            ("encode", "offline encode, batches of 32", 1.2),
            ("guide_whole", f"the guide's chunks of {_CHUNK} as they come, each one batch", 5.0),
            ("guide", f"the guide's listing as it stands: encode sorts {_CHUNK} texts into batches of 32", None),
            ("guide_fitted", "the same, fitted to two cores", None),
            ("ray", f"Ray Data map_batches, batches of {_RAY_BATCH}", 1.2),
        ):
            line(f"a whole run, packed over its window / {what}", ours, _rate(raw, f"embed:{name}"), "docs/s", bar)
    if "queue:ours" in raw:
        ours = _rate(raw, "queue:ours")
        line(
            f"no-op, durable, chunks of {_CHUNK} (a kill redoes what is under way, loses 0) / the bar",
            ours,
            3000,
            "items/s",
            1.0,
        )
        for name, what in (
            ("huey", "Huey on SQLite, 1 item a task (a kill loses the tasks under way, 4)"),
            ("celery", "Celery on Redis, acks_late, 1 item a task (loses 0, may do one twice)"),
            ("celery_chunks", f"the same, {_CHUNK} items a task (a task is done again whole)"),
        ):
            line(f"no-op, durable / {what}", ours, _rate(raw, f"queue:{name}"), "items/s", None)
    if "ledger:resume" in raw:
        seconds = median([one["seconds"] for one in raw["ledger:resume"]])
        line("resume of 1,000,000 items, to the first batch / 2 s", seconds, 2.0, "s", 1.0, more=False)
    if "memory:10000" in raw:
        few, many = (median([one["mib"] for one in raw[f"memory:{count}"]]) for count in (10_000, 1_000_000))
        line("the driver's largest resident set, 1,000,000 items / 10,000", many, few, "MiB", 1.25, more=False)
    return lines
