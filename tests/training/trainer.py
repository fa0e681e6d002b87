"""A process that has imported torch and TRL once and forks a training for each request: JSON lines in and out.

A job may be killed, or interrupted, some milliseconds after its k-th event: a log line of one step each.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import torch
import trl
from torch.optim.optimizer import register_optimizer_step_post_hook

import gpuserve
import gpuserve.runtime.training.sft
from gpuserve.builders.finetune import attempt_at

torch.set_num_threads(1)


def job_of(told: dict[str, Any]) -> type[gpuserve.FineTuneJob]:
    declared = {
        "base": gpuserve.FolderSource(told["base"]),
        "dataset": gpuserve.FileDataset(told["rows"]),
        "name": "tuned", "steps": tiny.STEPS, "batch_size": 8, "learning_rate": 1e-2, "schedule": "constant",
        "max_length": 64, "checkpoint_every": 6, "log_every": 1, "lora": gpuserve.Lora(rank=8, dropout=0.1),
        **told.get("declared", {}),
    }  # fmt: skip
    for name, kind in (("gate", gpuserve.Gate), ("lora", gpuserve.Lora), ("tracking", gpuserve.MlflowTracking)):
        if isinstance(declared.get(name), dict):
            declared[name] = kind(**declared[name])
    if declared.pop("wandb", None):
        declared["tracking"] = gpuserve.WandbTracking(offline=True)
    return type("Tune", (gpuserve.FineTuneJob,), declared)


def poison(step: int, quantity: str) -> None:
    """Have a quantity of that step, and none before it, be no number: the loss, its gradient or the weights."""
    real = trl.SFTTrainer.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, *args, **kwargs)
        if self.state.global_step + 1 != step:
            return loss
        if quantity == "grad_norm":
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss * float("nan") if quantity == "loss" else loss

    trl.SFTTrainer.compute_loss = poisoned
    done = 0

    def stepped(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal done
        done += 1
        if done == step:
            optimiser.param_groups[0]["params"][0].data[0, 0] = float("nan")

    if quantity == "weights":
        register_optimizer_step_post_hook(stepped)


def watch(file: Path) -> None:
    """Write down, for each batch that TRL computes a loss of, the text that is read and the text that is learnt."""
    real = trl.SFTTrainer.compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        tokens, labels = inputs["input_ids"], inputs["labels"]
        decode = self.processing_class.decode
        batch = [
            {"read": decode(row[row != self.processing_class.pad_token_id]), "learnt": decode(row[label != -100])}
            for row, label in zip(tokens, labels, strict=True)
        ]
        line = {"step": self.state.global_step + 1, "rows": batch}
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return real(self, model, inputs, *args, **kwargs)

    trl.SFTTrainer.compute_loss = watched


def note_environment(file: Path) -> None:
    """Write down each variable that is set or taken away from now on, by its name."""
    names = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"os.putenv", "os.unsetenv"}:
            os.write(names, arguments[0] + b"\n")

    sys.addaudithook(heard)


def train(told: dict[str, Any], tick: int) -> dict[str, Any]:
    root = Path(told["root"])
    job = job_of(told)
    if "poison" in told:
        poison(told["poison"], told.get("poisoned", "loss"))
    if "watch" in told:
        watch(Path(told["watch"]))
    if "environment" in told:
        note_environment(Path(told["environment"]))
    attempt = attempt_at(job(), told["run"], root=root, timeout_s=told.get("timeout_s", float("inf")))
    steps = root / f"{told['run']}.steps"

    def say(event: dict[str, Any]) -> None:
        if "loss" in event or "from" in event:
            with steps.open("a") as file:
                file.write(json.dumps({"pid": os.getpid(), **event}) + "\n")
            os.write(tick, b".")

    attempt.say = say
    report = attempt.work()
    return {"report": json.loads(report.to_json())}


def answers(told: dict[str, Any], _tick: int) -> dict[str, Any]:
    """What a plain `WarmModelServer` in this process answers, with its base and with the adapter in service."""
    from served import Bot

    import gpuserve.builders.server  # noqa: F401

    Bot.prepare(told["base"], Path(told["root"]) / "adapters")
    with Bot.local() as server:
        asked = [{"text": told["text"]}, {"text": told["text"], "adapter": "tuned"}]
        base, tuned = (server.complete.remote(one) for one in asked)
    return {"base": base, "tuned": tuned}


def base(told: dict[str, Any], _tick: int) -> dict[str, Any]:
    tiny.base_model(Path(told["folder"]))
    return {}


def four_bits(_told: dict[str, Any], _tick: int) -> dict[str, Any]:
    """What the base of a QLoRA is loaded with, by what is computed in."""
    dtypes = {name: gpuserve.runtime.training.sft.precision_of(name) for name in ("bf16", "fp32")}
    found = {name: gpuserve.runtime.training.sft.four_bit_of(dtype).to_dict() for name, dtype in dtypes.items()}
    return {"configs": found, "has_gpu": torch.cuda.is_available()}


def child(told: dict[str, Any], tick: int) -> None:
    try:
        found = globals()[told.get("do", "train")](told, tick)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        found = {"error": type(error).__name__, "text": traceback.format_exc()}
    Path(told["out"]).write_text(json.dumps(found))


def main() -> None:
    for line in sys.stdin:
        told = json.loads(line)
        reading, tick = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.close(reading)
            os.dup2(2, 1)  # what libraries print is no answer
            signal.signal(signal.SIGINT, signal.default_int_handler)
            child(told, tick)
            os._exit(0)
        os.close(tick)
        left = told.get("after_events", -1)
        while os.read(reading, 1):
            left -= 1
            if left == 0:
                threading.Event().wait(told.get("then_s", 0.0))
                os.kill(pid, told["signal"])
        os.close(reading)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # torch takes seconds to leave
