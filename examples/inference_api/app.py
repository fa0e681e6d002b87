"""An API of your own beside ours: your routes, bearer keys, CORS for one origin, open health checks.

The model is the smallest that does something: it shortens a text to the sentences with the rarest words.

    modal secret create api-secrets GPUSERVE_API_KEYS=me:$(openssl rand -hex 24)
    modal deploy app.py
    curl -X POST $URL/v1/completions -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \
         -d '{"prompt": "Summarize this document: ...", "max_tokens": 128}'
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import modal
from pydantic import BaseModel, ConfigDict, Field

import gpuserve

if TYPE_CHECKING:
    from fastapi import APIRouter

app = modal.App("ml-inference-api")


class GenerateRequest(BaseModel):
    """What to shorten, and to how many words."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    max_tokens: Annotated[int, Field(ge=1, le=2048)] = 256


@gpuserve.register(app)
class InferenceApi(gpuserve.WarmModelServer):
    """A summary of each prompt, by RPC (`predict`), at /predict, and at /v1/completions."""

    image = gpuserve.ImageSpec.debian().env(LANGUAGE_OF_TEXTS="en")
    scaling = gpuserve.Scaling(max_containers=4, scaledown_window=300)
    batching = gpuserve.Batching(max_batch_size=10)
    http = gpuserve.Http(
        keys=gpuserve.SecretSpec(name="api-secrets", required_keys=("GPUSERVE_API_KEYS",)),
        cors_origins=("https://yourdomain.com",),
        max_body_bytes=2**20,
        timeout_s=30,
    )
    timeout_s = 60
    startup_timeout_s = 60

    @gpuserve.batched
    def predict(self, batch: list[GenerateRequest]) -> list[str]:
        """The sentences of each prompt that say most, in their order, within its number of words."""
        return [_shortened(request.prompt, request.max_tokens) for request in batch]

    def routes(self, router: APIRouter) -> None:
        """The route that clients of other services know; keys guard it as they guard ours."""

        @router.post("/v1/completions")
        async def completions(request: GenerateRequest) -> dict[str, str]:
            return {"text": await self.predict.submit(request)}


def _shortened(text: str, words: int) -> str:
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    frequency = Counter(re.findall(r"\w+", text.lower()))

    def weight(sentence: str) -> float:
        found = re.findall(r"\w+", sentence.lower())
        return sum(1 / frequency[word] for word in found) / max(1, len(found))

    kept: list[int] = []
    for place in sorted(range(len(sentences)), key=lambda place: -weight(sentences[place])):
        if sum(len(sentences[one].split()) for one in [*kept, place]) <= words:
            kept.append(place)
    return " ".join(sentences[place] for place in sorted(kept)) or " ".join(text.split()[:words])
