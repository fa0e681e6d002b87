"""One side of a measurement on the GPU in a process of its own: ready on standard output, then started by a line.

`python -m benchmarks.gpu.tasks NAME ARGUMENTS`; its last line is JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["TASKS"]

_TEXTS = 7680
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make(folder: str) -> dict[str, Any]:
    """The Llama of the servers' benchmark."""
    from benchmarks.serving.peers import llama

    return {"parameters": llama.make(Path(folder))}


def load(folder: str) -> Callable[[], dict[str, Any]]:
    """Ours, into a model without values."""
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    from gpuserve.runtime.loading import load_into

    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(folder))
    return lambda: _timed(lambda: load_into(model, Path(folder), device="cuda:0"), _bytes(folder))


def load_transformers(folder: str) -> Callable[[], dict[str, Any]]:
    """Transformers' own way."""
    from transformers import LlamaForCausalLM

    return lambda: _timed(
        lambda: LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0}), _bytes(folder)
    )


def load_safetensors(folder: str) -> Callable[[], dict[str, Any]]:
    """Safetensors' own way, without a model."""
    from safetensors.torch import load_file

    return lambda: _timed(lambda: load_file(Path(folder) / "model.safetensors", device="cuda:0"), _bytes(folder))


def copy(folder: str) -> Callable[[], dict[str, Any]]:
    """As many bytes from pinned memory, which is what the bus can."""
    count = _bytes(folder)
    source = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(count, dtype=torch.uint8, device="cuda")
    return lambda: _timed(lambda: target.copy_(source, non_blocking=True), count)


def encode(dtype: str) -> Callable[[], dict[str, Any]]:
    """Packed and padded, on the same texts; how far they are from each other, and from themselves in other batches."""
    from gpuserve.models.encoder import SentenceEncoder

    model, texts = _minilm().to(_DTYPES[dtype]), _texts()
    encoder = SentenceEncoder(model)
    if encoder.padded_because is not None:
        raise RuntimeError(f"the model is padded: {encoder.padded_because}")
    encoder.calibrate()

    def padded(batch: int, some: list[str] = texts) -> Any:
        return model.encode(some, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)

    def run() -> dict[str, Any]:
        found: dict[str, Any] = {"row_tokens": encoder.row_tokens}
        ours, spent = encoder.encode(texts), _seconds(lambda: encoder.encode(texts))
        found["docs_per_s"] = len(texts) / spent
        for batch in (32, 256):
            padded(batch, texts[:512])
            found[f"encode_{batch}_per_s"] = len(texts) / _seconds(lambda batch=batch: padded(batch))  # type: ignore[misc]
        theirs = padded(32)
        found["difference"] = float(abs(ours - theirs).max())
        found["their_own_difference"] = float(abs(padded(256) - theirs).max())
        for count in (1, 32, 128):
            parts = [texts[place : place + count] for place in range(0, 20 * count, count)]
            found[f"ours_ms_{count}"] = 50 * _seconds(lambda parts=parts: [encoder.encode(one) for one in parts])  # type: ignore[misc]
            found[f"encode_ms_{count}"] = 50 * _seconds(lambda parts=parts: [padded(32, one) for one in parts])  # type: ignore[misc]
        return found

    return run


def _minilm() -> Any:
    from benchmarks.serving.peers.minilm import open_model

    return open_model()


def _texts() -> list[str]:
    from gpuserve.quickstart.corpus import standard_library_docstrings

    texts = [one.text for one in standard_library_docstrings()]
    return random.Random(1).choices(texts, k=_TEXTS)  # noqa: S311 (no secret)


def _bytes(folder: str) -> int:
    return (Path(folder) / "model.safetensors").stat().st_size


def _seconds(what: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    what()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def _timed(what: Callable[[], Any], count: int) -> dict[str, Any]:
    return {"seconds": _seconds(what), "bytes": count}


TASKS: dict[str, Callable[[str], Any]] = {
    one.__name__: one for one in (make, load, load_transformers, load_safetensors, copy, encode)
}

if __name__ == "__main__":
    torch.zeros(1, device="cuda")
    prepared = TASKS[sys.argv[1]](sys.argv[2])
    if callable(prepared):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        prepared = prepared()
    sys.stdout.write(json.dumps(prepared) + "\n")
