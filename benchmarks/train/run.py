"""`python -m benchmarks train`: steps a second of a `FineTuneJob` and of the bare trainer, both with checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import keep, machine, median

__all__ = ["main"]

_STEPS, _EVERY, _BATCH, _LENGTH = 60, 20, 8, 128
_BAR = 0.97


def main(*, rounds: int = 3) -> dict[str, Any]:
    """Measure both in each round, in alternating order; keep every figure.

    Args:
        rounds: How often each is run, in a process of its own.
    """
    raw: dict[str, list[float]] = {"ours": [], "bare": []}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gpuserve-bench-") as folder:
        _task("prepare", folder, {})
        for number in range(max(3, rounds)):
            for side in ("ours", "bare")[:: 1 if number % 2 == 0 else -1]:
                told = _task(side, folder, {"number": number})
                raw[side].append(told["steps"] / told["seconds"])
                losses[side] = told["loss"]
                sys.stderr.write(f"round {number}, {side}: {raw[side][-1]:.2f} steps/s, loss {told['loss']:.4f}\n")
    if losses["ours"] != losses["bare"]:
        raise RuntimeError(f"the two did not train the same model: {losses}")
    ours, bare = median(raw["ours"]), median(raw["bare"])
    report = {
        "machine": machine(("gpuserve", "peft", "torch", "transformers", "trl")),
        "counts": {
            "rounds": max(3, rounds), "steps": _STEPS, "steps a checkpoint": _EVERY, "rows a step": _BATCH,
            "tokens a row": _LENGTH,
        },
        "summary": [
            {
                "what": "FineTuneJob, checkpoints on / bare SFTTrainer, checkpoints on", "ours": ours, "floor": bare,
                "unit": "steps/s", "ratio": ours / bare, "bar": _BAR, "more_is_better": True,
            }
        ],
        "raw": raw,
    }  # fmt: skip
    keep("train", report)
    return report


def _task(name: str, folder: str, told: dict[str, Any]) -> dict[str, Any]:
    given = {"folder": folder, "steps": _STEPS, "every": _EVERY, "batch": _BATCH, "length": _LENGTH, **told}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train.tasks", name, json.dumps(given)],
        stdout=subprocess.PIPE, text=True, check=True, timeout=600, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
