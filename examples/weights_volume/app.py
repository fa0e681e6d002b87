"""Weights fetched once into a volume, and loaded read-only by every container that serves them.

modal run app.py::fetch        # once: at one commit, every file checked against its sha256
modal run app.py --text "..."  # any number of times: nothing is downloaded
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import modal
from pydantic import Field

import gpuserve

if TYPE_CHECKING:
    import numpy as np
    from sentence_transformers import SentenceTransformer

app = modal.App("weights-in-a-volume")

weights = gpuserve.VolumeWeightsCache(
    source=gpuserve.HubSource(
        "sentence-transformers/all-MiniLM-L6-v2", revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    ),
    volume="minilm-weights",
    # a mirror of the hub's, where there is one
    env={"HF_ENDPOINT": os.environ["HF_ENDPOINT"]} if "HF_ENDPOINT" in os.environ else {},
    timeout_s=3600,
)
fetch = gpuserve.register_weights(app, weights, name="fetch")


@gpuserve.register(app)
class FromVolume(gpuserve.WarmModelServer):
    """MiniLM, from the volume."""

    image = gpuserve.ImageSpec.debian().pip(
        "numpy==2.4.6", "sentence-transformers==6.2.0", "torch==2.13.0", "transformers==5.23.0"
    )
    scaling = gpuserve.Scaling(max_containers=2, scaledown_window=120)
    volumes = gpuserve.weights_volumes(weights)
    env = {"HF_HUB_OFFLINE": "1"}  # noqa: RUF012 (a declaration)
    timeout_s = 120
    startup_timeout_s = 300

    model: SentenceTransformer

    def load(self) -> None:
        """Load what was verified; a container that finds nothing says how to fetch it."""
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(weights.path()))

    @gpuserve.batched
    def embed(self, batch: list[Annotated[str, Field(max_length=20_000)]]) -> list[np.ndarray]:
        """One vector a text."""
        return list(self.model.encode(batch, normalize_embeddings=True))


@app.local_entrypoint()
def main(text: str = "a text") -> None:
    """Embed one text."""
    server: Any = FromVolume()
    print(f"{len(server.embed.remote(text))} numbers")
