"""What needs no server: `encode`, the bare matrix products, and the model called directly. Commands in, JSON out."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving.models import Embed

__all__: list[str] = []

_LAYERS, _WIDTH, _INNER = 6, 384, 1536


def main() -> None:
    """Answer each line of standard input: a command, its number of texts, a seed."""
    texts = [json.loads(line)["input"] for line in Path(sys.argv[1]).read_text().splitlines()]
    server = Embed()
    server.load()
    server.warm_up()
    plain: Any = server.open_model()
    plain.encode(["warm"])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, count, seed = line.split()
        chosen = random.Random(int(seed)).sample(texts, int(count))  # noqa: S311 (no secret)
        began = time.perf_counter()
        if command == "encode":
            plain.encode(chosen)
            found: Any = len(chosen) / (time.perf_counter() - began)
        elif command == "matmul":
            found = len(chosen) / _products(server, chosen)
        elif command == "direct":
            found = _one_by_one(server, chosen)
        else:
            found = [vector.tolist() for vector in plain.encode(chosen)]
        print(json.dumps(found), flush=True)


def _products(server: Embed, texts: Sequence[str]) -> float:
    """Seconds of the model's dense layers alone, for as many tokens, in rows of 256."""
    tokens = server.encoder.count_tokens(texts)
    shapes = [(_WIDTH, _WIDTH)] * 4 + [(_WIDTH, _INNER), (_INNER, _WIDTH)]
    weights = [torch.rand(shape) for shape in shapes] * _LAYERS
    rows = {width: torch.rand(256, width) for width in (_WIDTH, _INNER)}
    with torch.inference_mode():
        began = time.perf_counter()
        for _ in range(-(-tokens // 256)):
            for weight in weights:
                torch.mm(rows[weight.shape[0]], weight)
        return time.perf_counter() - began


def _one_by_one(server: Embed, texts: Sequence[str]) -> list[float]:
    """The milliseconds that the model takes for each text alone."""
    spent = []
    for text in texts:
        began = time.perf_counter()
        server.encoder.encode([text])
        spent.append(1000 * (time.perf_counter() - began))
    return spent


if __name__ == "__main__":
    main()
