"""`python -m benchmarks train`: steps a second of a `FineTuneJob` and of the bare trainer, both with checkpoints."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import keep, machine

__all__ = ["compare", "main", "prepare"]

_SIDES = ("ours", "bare")
_STEPS, _EVERY, _TURN, _BATCH, _LENGTH = 60, 20, 4, 8, 128
_BAR = 0.97


def main(*, rounds: int = 3) -> dict[str, Any]:
    """Measure both in each round, in turns; keep every figure.

    Args:
        rounds: How often each is run, in a process of its own.
    """
    raw: dict[str, list[float]] = {side: [] for side in _SIDES}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="gpuserve-bench-") as folder:
        prepare(Path(folder))
        for number in range(max(3, rounds)):
            for side, told in compare(Path(folder), {"number": number}).items():
                raw[side].append(told["steps_per_s"])
                losses[side] = told["loss"]
                sys.stderr.write(f"round {number}, {side}: {raw[side][-1]:.2f} steps/s, loss {told['loss']:.4f}\n")
    if losses["ours"] != losses["bare"]:
        raise RuntimeError(f"the two did not train the same model: {losses}")
    # both sides of a round have had the same neighbours, two rounds have not: the round with the median of the ratios
    pairs = sorted(zip(raw["ours"], raw["bare"], strict=True), key=lambda pair: pair[0] / pair[1])
    ours, bare = pairs[len(pairs) // 2]
    report = {
        "machine": machine(("gpuserve", "peft", "torch", "transformers", "trl")),
        "counts": {
            "rounds": max(3, rounds), "steps": _STEPS, "steps a turn": _TURN, "steps a checkpoint": _EVERY,
            "rows a step": _BATCH, "tokens a row": _LENGTH,
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


def prepare(folder: Path) -> None:
    """Make the small model and the rows in *folder*."""
    with _task("prepare", _told(folder, {})) as running:
        running.communicate()


def compare(folder: Path, told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Run both sides in turns of a few steps; what each has told, with its steps a second.

    Raises:
        RuntimeError: If one fails.
    """
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        running = {side: stack.enter_context(_task(side, _told(folder, told))) for side in _SIDES}
        for one in running.values():
            _until_its_turn(one)
        while len(found) < len(running):
            for side, one in running.items():
                if side not in found and (last := _until_its_turn(one, go=True)) is not None:
                    answer = json.loads(last)
                    found[side] = {**answer, "steps_per_s": answer["steps"] / answer["seconds"]}
    return found


def _told(folder: Path, told: dict[str, Any]) -> dict[str, Any]:
    given = {"steps": _STEPS, "every": _EVERY, "batch": _BATCH, "length": _LENGTH, "turn": _TURN}
    return {"folder": str(folder), **given, **told}


@contextlib.contextmanager
def _task(name: str, told: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.train.tasks", name, json.dumps(told)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as running:
        try:
            yield running
        finally:
            running.kill()


def _until_its_turn(running: subprocess.Popen[str], *, go: bool = False) -> str | None:
    """Let it go on, and wait until it is to wait again; its last line if it has ended instead."""
    if running.stdin is None or running.stdout is None:
        raise RuntimeError("no pipes")
    if go:
        running.stdin.write("go\n")
        running.stdin.flush()
    last = ""
    for line in running.stdout:
        if line == "turn\n":
            return None
        last = line
    if running.wait():
        raise RuntimeError(f"{running.args!r} ended with {running.returncode}")
    return last
