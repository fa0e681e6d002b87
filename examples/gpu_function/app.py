"""One function on a GPU: text from a prompt, retried on transient failures, stopped after five minutes.

A function loads the model for each call. That is right for a call now and then; a service loads once: see
../llm_class.
"""

from __future__ import annotations

import modal

import gpuserve

MODEL = "mistralai/Mistral-7B-Instruct-v0.3"
REVISION = "c170c708c41dac9275d15a8fff4eca08d52bab71"

app = modal.App("gpu-inference")
image = gpuserve.ImageSpec.debian("3.11").pip("accelerate==1.15.0", "torch==2.13.0", "transformers==5.23.0")
hub = gpuserve.SecretSpec(name="huggingface-token", required_keys=("HF_TOKEN",))


@app.function(
    image=gpuserve.modal_image(image),
    gpu=str(gpuserve.Gpu.fits(parameters=7.2e9, dtype="bf16", context=4096)),  # the cheapest that holds it
    secrets=[gpuserve.modal_secret(hub)],
    max_containers=2,
    timeout=300,
    retries=2,
)
def run_inference(prompt: str) -> str:
    """Continue *prompt*."""
    gpuserve.require_keys([hub])
    import torch
    from transformers import pipeline

    pipe = pipeline("text-generation", model=MODEL, revision=REVISION, dtype=torch.bfloat16, device_map="cuda:0")
    outputs = pipe(prompt, max_new_tokens=512, do_sample=True, temperature=0.7)
    text: str = outputs[0]["generated_text"]
    return text


@app.local_entrypoint()
def main(prompt: str = "Explain transformers in one paragraph.") -> None:
    """Print what the model says."""
    print(run_inference.remote(prompt))
