"""A language model that is loaded once a container, from a volume, and answers in batches, by RPC and over HTTP.

Weights are fetched once into a volume, at one commit, and verified:
    modal run app.py::fetch
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import modal
from pydantic import BaseModel, Field

import gpuserve

if TYPE_CHECKING:
    from transformers import AutoModelForCausalLM, AutoTokenizer

app = modal.App("llama-inference")

weights = gpuserve.VolumeWeightsCache(
    source=gpuserve.HubSource(
        "mistralai/Mistral-7B-Instruct-v0.3",
        revision="c170c708c41dac9275d15a8fff4eca08d52bab71",
        exclude=("consolidated.safetensors",),
    ),
    volume="llm-model-weights",
    token=gpuserve.SecretSpec(name="huggingface-token", required_keys=("HF_TOKEN",)),
    timeout_s=3600,
)
fetch = gpuserve.register_weights(app, weights, name="fetch")


class GenerateRequest(BaseModel):
    """What to continue, and how."""

    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7


@gpuserve.register(app)
class LlamaInference(gpuserve.WarmModelServer):
    """Mistral-7B-Instruct."""

    image = gpuserve.ImageSpec.debian("3.11").pip("accelerate==1.15.0", "torch==2.13.0", "transformers==5.23.0")
    gpu = ("A10", "L40S")  # the second where the first is not to be had
    scaling = gpuserve.Scaling(max_containers=5, scaledown_window=300)
    batching = gpuserve.Batching(max_batch_size=8)
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="api-secrets", required_keys=("GPUSERVE_API_KEYS",)))
    volumes = gpuserve.weights_volumes(weights)
    timeout_s = 120
    startup_timeout_s = 600

    tokenizer: AutoTokenizer
    model: AutoModelForCausalLM

    def load(self) -> None:
        """Load once a container, from what was verified."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = weights.path()
        self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map="cuda:0").eval()

    def warm_up(self) -> None:
        """Pay for the first generation before the first request."""
        self._continue([GenerateRequest(prompt="Hello", max_tokens=1)], temperature=0)

    @gpuserve.batched
    def generate(self, batch: list[GenerateRequest]) -> list[str]:
        """The continuation of each prompt; requests of one temperature go together."""
        answers: dict[int, str] = {}
        for temperature in sorted({request.temperature for request in batch}):
            places = [place for place, request in enumerate(batch) if request.temperature == temperature]
            texts = self._continue([batch[place] for place in places], temperature=temperature)
            answers.update(zip(places, texts, strict=True))
        return [answers[place] for place in range(len(batch))]

    def _continue(self, requests: list[GenerateRequest], *, temperature: float) -> list[str]:
        import torch

        prompts = [request.prompt for request in requests]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, truncation=True, max_length=2048).to("cuda")
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with torch.inference_mode():
            outputs = self.model.generate(
                **inputs,
                **sampling,
                max_new_tokens=max(request.max_tokens for request in requests),
                pad_token_id=self.tokenizer.eos_token_id,
            )
        generated = outputs[:, inputs["input_ids"].shape[1] :]
        cut = [row[: request.max_tokens] for row, request in zip(generated, requests, strict=True)]
        return self.tokenizer.batch_decode(cut, skip_special_tokens=True)

    def unload(self) -> None:
        """Give the GPU's memory back."""
        import torch

        del self.model
        torch.cuda.empty_cache()


@app.local_entrypoint()
def main(prompt: str = "Explain transformers in one paragraph.") -> None:
    """Print what the model says."""
    print(LlamaInference().generate.remote(GenerateRequest(prompt=prompt)))
