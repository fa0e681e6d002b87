"""A process that forks writers of checkpoints, which may be killed at any of their steps: JSON lines in and out."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from gpuserve.runtime.ports import PlainFolder
from gpuserve.runtime.training.checkpoints import CheckpointStore

# Each of these audited steps may be the last one.
_STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")


def files_of(step: int) -> dict[str, bytes]:
    """What the checkpoint of a step holds."""
    dice = random.Random(step)
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    return {name: dice.randbytes(dice.randrange(1, 40_000)) for name in names}


def save(store: CheckpointStore, step: int) -> None:
    """Write the checkpoint of *step*."""

    def write(folder: Path) -> None:
        for name, data in files_of(step).items():
            (folder / name).write_bytes(data)

    store.publish(step, write)


def work(told: dict[str, Any]) -> None:
    root, done = told["root"], 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in _STEPS and str(arguments[0]).startswith(root):
            done += 1
            if done == told.get("kill_at_step"):
                os.kill(os.getpid(), signal.SIGKILL)

    store = CheckpointStore(Path(root), PlainFolder(), keep=2)
    store.prepare()
    newest = store.newest()
    step = newest.step if newest is not None else 0
    sys.addaudithook(count)
    for place in range(1, told["checkpoints"] + 1):
        save(store, step + place)
    Path(told["out"]).write_text(str(done))


def main() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(0)
            try:
                work(told)
            finally:
                os._exit(0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


if __name__ == "__main__":
    main()
