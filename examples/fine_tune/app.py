"""A language model fine-tuned with QLoRA: in attempts of two hours, each from where the one before it stopped.

modal run --detach app.py --run first      # ends, or goes on where it was, whenever it is asked for again
"""

from __future__ import annotations

from typing import Any

import modal

import gpuserve

app = modal.App("fine-tuning")


@gpuserve.register(app)
class Tune(gpuserve.FineTuneJob):
    """Llama 3 8B on a dataset of the hub."""

    base = gpuserve.VolumeWeightsCache(
        source=gpuserve.HubSource(
            "meta-llama/Meta-Llama-3-8B",
            revision="8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920",
            exclude=("original/*",),
        ),
        volume="llama-3-8b",
        token=gpuserve.SecretSpec(name="huggingface-token", required_keys=("HF_TOKEN",)),
    )
    dataset = gpuserve.HubDataset("your-org/instructions")
    evaluation = 0.05
    lora = gpuserve.Lora(rank=16, alpha=32, dropout=0.05, target_modules=("q_proj", "v_proj"), four_bit=True)
    precision = "auto"  # bf16 on an A100; the guide's fp16=True overflows on models of this kind
    epochs = 3
    batch_size = 4
    gradient_accumulation = 4
    learning_rate = 2e-4
    log_every = 10
    checkpoint_every = 100
    gate = gpuserve.Gate(metric="eval_loss", better="lower", tolerance=0.01)
    gpu = "A100-80GB"
    timeout_s = 7200
    image = gpuserve.ImageSpec.debian("3.11").pip(
        "accelerate==1.15.0", "bitsandbytes==0.50.2", "datasets==5.2.0", "huggingface_hub==2.4.0", "peft==0.21.2",
        "torch==2.13.0", "transformers==5.23.0", "trl==1.16.0",
    )  # fmt: skip


@app.local_entrypoint()
def main(run: str = "first") -> None:
    """Train, and say what came out."""
    tune: Any = Tune()
    report: gpuserve.TrainingReport = tune.train.remote(run)
    print(f"{report.adapter} ({dict(report.metrics)})")
    print(f"in service: {report.served or 'nothing'}; {report.reason}")
