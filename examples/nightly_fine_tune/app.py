"""A model tuned each night on the feedback of all days so far, tracked by MLflow, in service only if it is no worse.

python make_base.py                          # once: a tiny base model, in ./base (yours is a HubSource)
modal secret create mlflow-credentials MLFLOW_TRACKING_URI=http://...
modal deploy app.py                          # every night at two
modal run app.py --run 2026-11-25            # a night by hand: taken up, or told of, and never done twice
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
from pydantic import BaseModel

import gpuserve

HERE = Path(__file__).parent
FEEDBACK = Path("/feedback")

app = modal.App("nightly-fine-tuning")
feedback = modal.Volume.from_name("daily-feedback", create_if_missing=True)
base = gpuserve.FolderSource("/root/base", name="tiny-base")
image = (
    gpuserve.ImageSpec.debian("3.11")
    .pip(
        "accelerate==1.15.0", "datasets==5.2.0", "huggingface_hub==2.4.0", "mlflow==3.17.2", "peft==0.21.2",
        "torch==2.13.0", "transformers==5.23.0", "trl==1.16.0",
    )
    .local_dir(str(HERE / "base"), "/root/base")
)  # fmt: skip


@gpuserve.register(app)
class Nightly(gpuserve.FineTuneJob):
    """The base, tuned on what people said."""

    base = gpuserve.VolumeWeightsCache(source=base, volume="nightly-base")
    evaluation = 0.2
    lora = gpuserve.Lora(rank=8, alpha=16)
    steps = 24
    batch_size = 8
    learning_rate = 1e-2
    max_length = 64
    checkpoint_every = 8
    log_every = 4
    gate = gpuserve.Gate(metric="eval_loss", better="lower", tolerance=0.02)
    tracking = gpuserve.MlflowTracking(
        experiment="nightly-fine-tuning",
        secret=gpuserve.SecretSpec(name="mlflow-credentials", required_keys=("MLFLOW_TRACKING_URI",)),
    )
    image = image
    timeout_s = 10_800
    volumes = {str(FEEDBACK): feedback}  # noqa: RUF012 (a declaration)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The feedback of this night and of those before it: the same rows whenever this night is run."""
        for day in sorted(FEEDBACK.glob("*.jsonl")):
            if day.stem <= self.run:
                yield from map(json.loads, day.read_text().splitlines())


class Ask(BaseModel):
    """A beginning to go on from, with the base or with what is in service."""

    text: str
    adapter: str | None = None


@gpuserve.register(app)
class Assistant(gpuserve.WarmModelServer):
    """The base, and the adapter that is in service when the container starts."""

    image = image
    adapters = {"nightly": Nightly.adapter()}  # noqa: RUF012 (a declaration)

    def load(self) -> None:
        """Load the base."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained("/root/base")
        self.base = AutoModelForCausalLM.from_pretrained("/root/base").eval()
        self.model: Any = self.base

    def load_adapter(self, name: str, path: Path) -> None:
        """Put the adapter over the base."""
        from peft import PeftModel

        self.tuned = PeftModel.from_pretrained(self.base, str(path), adapter_name=name).eval()

    def use_adapter(self, name: str | None) -> None:
        """Answer with it, or with the base alone."""
        if name is None:
            self.tuned.base_model.disable_adapter_layers()
        else:
            self.tuned.base_model.enable_adapter_layers()
            self.model = self.tuned

    @gpuserve.batched
    def complete(self, batch: list[Ask]) -> list[str]:
        """Go on, most probable letter by most probable letter."""
        import torch

        found = []
        for ask in batch:
            tokens = self.tokenizer(ask.text, return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                made = self.model.generate(input_ids=tokens, max_new_tokens=32, do_sample=False, use_cache=False)
            found.append(self.tokenizer.decode(made[0, tokens.shape[1] :], skip_special_tokens=True))
        return found


@app.function(image=gpuserve.modal_image(gpuserve.ImageSpec.debian("3.11")), volumes={str(FEEDBACK): feedback})
def collect(run: str) -> int:
    """Write the day's feedback, once; yours asks your database."""
    import sys

    day = FEEDBACK / f"{run}.jsonl"
    if not day.exists():
        names = sorted(name for name in sys.stdlib_module_names if not name.startswith("_"))[:80]
        rows = [{"text": f"{name}: a module that Python brings."} for name in names]
        day.with_suffix(".new").write_text("".join(json.dumps(row) + "\n" for row in rows))
        day.with_suffix(".new").rename(day)
        feedback.commit()
    return len(day.read_text().splitlines())


@app.function(
    image=gpuserve.modal_image(gpuserve.ImageSpec.debian("3.11")),
    schedule=modal.Cron("0 2 * * *", timezone="UTC"),
    timeout=600,
    retries=2,
)
def nightly() -> str:
    """Begin the night's run, and give its call; its name is its date, so that a night that fires twice is one run."""
    run = dt.datetime.now(dt.UTC).date().isoformat()
    collect.remote(run)
    tune: Any = Nightly()
    call: modal.FunctionCall[Any] = tune.train.spawn(run)
    return call.object_id


@app.local_entrypoint()
def main(run: str = "") -> None:
    """A night by hand, and what the assistant says before and after."""
    run = run or dt.datetime.now(dt.UTC).date().isoformat()
    print(f"{collect.remote(run)} rows")
    tune: Any = Nightly()
    report: gpuserve.TrainingReport = tune.train.remote(run)
    losses = [one["loss"] for one in report.history if "loss" in one]
    print(f"loss from {losses[0]:.2f} to {losses[-1]:.2f} in {report.step} steps and {report.attempts} attempts")
    print(f"promoted: {report.promoted}; {report.reason}")
    assistant: Any = Assistant()
    for adapter in (None, "nightly"):
        print(f"{adapter or 'base'}: {assistant.complete.remote(Ask(text='shelve:', adapter=adapter))!r}")
