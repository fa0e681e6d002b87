"""`python -m benchmarks weights`: verifying, loading and fetching, each beside the least that it could cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.record import keep, machine, median
from benchmarks.weights.tasks import THREADS

__all__ = ["main"]

_SEED = 20261124
_FILES = 4
_TENSORS = 8
_VERIFY_BAR, _TOGETHER_BAR, _FETCH_BAR = 1.2, 1.3, 0.9
_LOCAL = ("hashlib_threads", "sha256sum", "verify", "load", "load_verified", "copy", "copy_verified")
_FETCHES = ("fetch_ours", "fetch_hub", "fetch_hub_synced")


def main(*, rounds: int = 5, mib: int = 1024) -> dict[str, Any]:
    """Measure all in each round, in an order that changes; keep every figure.

    Args:
        rounds: How often each is run.
        mib: MiB of random weights, in four files.
    """
    raw: dict[str, list[float]] = {name: [] for name in (*_LOCAL, *_FETCHES)}
    with tempfile.TemporaryDirectory(prefix="gpuserve-bench-") as folder:
        base = Path(folder)
        source = _weights(base / "source", mib)
        with _hub(source) as (url, commit):
            snapshot = _published(base / "store", url, commit)
            files = str(Path(snapshot) / "files")
            for number in range(rounds):
                for name in _order(number):
                    if name in _FETCHES:
                        arguments = [url, commit, str(base / f"{name}-{number}")]
                        os.sync()  # nobody pays for what another wrote
                    else:
                        arguments = [files if name in {"hashlib_threads", "sha256sum"} else snapshot]
                    raw[name].append(_timed(name, *arguments))
                sys.stderr.write(f"round {number}: {_brief(raw)}\n")
    report = {
        "machine": machine(("gpuserve", "huggingface_hub", "safetensors", "torch")),
        "counts": {"rounds": rounds, "MiB": mib, "files": _FILES, "threads": THREADS, "seed": _SEED},
        "summary": _summary(raw, mib),
        "raw": raw,
    }
    keep("weights", report)
    return report


def _order(number: int) -> tuple[str, ...]:
    """What is measured in one round, in its order.

    Who fetches first after what only reads takes half a second longer, whoever it is, so that each is it in its turn.
    """
    first = number % len(_FETCHES)
    return (*_LOCAL[:: 1 if number % 2 == 0 else -1], *_FETCHES[first:], *_FETCHES[:first])


def _weights(folder: Path, mib: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(_SEED)
    rows = (mib << 20) // _FILES // _TENSORS // 4 // 1024
    for number in range(_FILES):
        tensors = {
            f"layer_{number}_{one}": rng.integers(0, 1 << 32, (rows, 1024), np.uint32).view(np.float32)
            for one in range(_TENSORS)
        }
        save_file(tensors, folder / f"model-{number + 1:05}-of-{_FILES:05}.safetensors")
    (folder / "config.json").write_text(json.dumps({"seed": _SEED}))
    return folder


@contextmanager
def _hub(source: Path) -> Iterator[tuple[str, str]]:
    command = [sys.executable, "-m", "benchmarks.weights.hub_process", str(source)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdin is None:
            raise RuntimeError("the hub has no pipes")
        url, commit = process.stdout.readline().split()
        yield url, commit
        process.stdin.close()


def _published(store: Path, url: str, commit: str) -> str:
    from gpuserve.builders.weights import VolumeWeightsCache
    from gpuserve.specs.source import HubSource

    os.environ["HF_ENDPOINT"] = url
    cache = VolumeWeightsCache(source=HubSource("org/model", revision=commit))
    cache.fetch(root=store)
    return str(cache.path(root=store).parent)


def _timed(name: str, *arguments: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.weights.tasks", name, *arguments],
        stdout=subprocess.PIPE, text=True, check=True, timeout=300,
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1]))


def _brief(raw: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.2f} s" for name, values in raw.items())


def _summary(raw: dict[str, list[float]], mib: int) -> list[dict[str, Any]]:
    spent = {name: median(values) for name, values in raw.items()}
    best = min(("hashlib_threads", "sha256sum"), key=lambda name: spent[name])
    called = {"hashlib_threads": f"hashlib in {THREADS} threads", "sha256sum": f"{THREADS} sha256sum at once"}[best]

    def line(what: str, ours: float, floor: float, bar: float | None) -> dict[str, Any]:
        return {"what": what, "ours": ours, "floor": floor, "unit": "s", "ratio": ours / floor, "bar": bar}

    def rate(what: str, floor: str, bar: float | None) -> dict[str, Any]:
        ours, theirs = mib / spent["fetch_ours"], mib / spent[floor]
        return {
            "what": what, "ours": ours, "floor": theirs, "unit": "MiB/s", "ratio": ours / theirs, "bar": bar,
            "more_is_better": True,
        }  # fmt: skip

    return [
        line(f"verifying everything / sha256 of the same bytes ({called})", spent["verify"], spent[best], _VERIFY_BAR),
        line(
            "mapping into a meta model, verified meanwhile / the longer of the two alone",
            spent["load_verified"], max(spent["load"], spent["verify"]), _TOGETHER_BAR,
        ),
        line(
            "copying every byte, verified meanwhile / the longer of the two alone",
            spent["copy_verified"], max(spent["copy"], spent["verify"]), None,  # each alone keeps every core busy
        ),
        line(
            "copying every byte, verified meanwhile / one after the other",
            spent["copy_verified"], spent["copy"] + spent["verify"], None,
        ),
        rate("fetch from a loopback hub / huggingface_hub's download, then sha256", "fetch_hub", _FETCH_BAR),
        rate("the same / with its files synced too", "fetch_hub_synced", None),
    ]  # fmt: skip
