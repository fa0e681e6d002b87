"""What the quickstart shows while it runs, and what it tells at the end."""

from __future__ import annotations

import importlib.metadata
import json
import os
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from gpuserve.engine import LocalEngine
    from gpuserve.quickstart.clock import Clock

__all__ = ["Report", "ask", "progress", "show"]

# Straight to the engine's own address: a proxy of the environment must not see the key.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# A part of the cold start that is worth a line.
_VISIBLE_S = 0.005
_MODAL = importlib.metadata.version("modal")


@dataclass(frozen=True, slots=True)
class Report:
    """One run in figures.

    Attributes:
        docs_per_s: Docstrings embedded a second, end to end, over the whole map.
        seconds: The parts, in the order in which they began; those that ran in the meantime overlap.
        cold_start: What the container itself says that its start was made of, in seconds.
        containers_started: Containers that were started during the run, in all.
        containers_at_once: The most that ran at the same time.
        isolation: How containers were kept apart on this machine.
    """

    docstrings: int
    dimensions: int
    docs_per_s: float
    total_s: float
    seconds: dict[str, float]
    cold_start: dict[str, float]
    containers_started: int
    containers_at_once: int
    isolation: str
    cpus: int
    versions: dict[str, str]
    answers: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(
        cls, engine: LocalEngine, clock: Clock, *, docstrings: int, dimensions: int, answers: dict[str, Any]
    ) -> Report:
        """Gather the figures while the app still runs."""
        status = engine.status()
        return cls(
            docstrings=docstrings,
            dimensions=dimensions,
            docs_per_s=round(docstrings / clock.seconds["embedding"], 1),
            total_s=round(clock.total_s, 3),
            seconds={part: round(spent, 3) for part, spent in clock.seconds.items()},
            cold_start=_ready_event(engine.logs("gpuserve-quickstart")),
            containers_started=sum(pool["started"] for pool in status["pools"]),
            containers_at_once=sum(pool["peak"] for pool in status["pools"]),
            isolation=status["isolation"],
            cpus=os.cpu_count() or 1,
            versions={name: importlib.metadata.version(name) for name in ("gpuserve", "modal", "torch")},
            answers=answers,
        )

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)


def _ready_event(log: str) -> dict[str, float]:
    """The parts of the first ``ready`` event in a container's log."""
    for line in log.splitlines():
        if line.startswith('{"event": "ready"'):
            return {name.removesuffix("_s"): spent for name, spent in json.loads(line).items() if name.endswith("_s")}
    return {}


def progress(console: Console, vectors: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass *vectors* on, with a bar on a terminal and one plain line elsewhere."""
    if not console.is_terminal:
        console.print(f"embedding {total:,} docstrings", highlight=False)
        yield from vectors
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Docstrings a second, once there is something to divide."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.0f}/s" if task.speed else "", style="progress.data.speed")

    columns = ("embedding", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("embedding", total=total)
        for vector in vectors:
            yield vector
            bar.advance(task)


def ask(url: str, key: str, question: str) -> list[dict[str, Any]]:
    """The three docstrings nearest to *question*, over HTTP as anybody would ask."""
    request = urllib.request.Request(  # noqa: S310 (the engine's own address)
        f"{url}/search",
        data=json.dumps({"query": question, "limit": 3}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with _OPENER.open(request, timeout=60) as response:
        results: list[dict[str, Any]] = json.load(response)["results"]
        return results


def show(console: Console, report: Report) -> None:
    """Answers, times, and what ran where."""
    from rich.table import Table
    from rich.text import Text

    console.print("\nQuestions, and the nearest docstrings", style="bold")
    for question, results in report.answers.items():
        console.print(Text(f"\n{question}"), style="cyan")
        found = Table.grid(padding=(0, 2, 0, 0), expand=True)
        found.add_column(width=5)
        found.add_column(ratio=5, no_wrap=True, overflow="ellipsis")
        found.add_column(ratio=6, no_wrap=True, overflow="ellipsis", style="dim")
        for one in results:
            first_line = one["text"].partition("\n")[0]
            found.add_row(f"{one['score']:.3f}", Text(one["name"]), Text(first_line))
        console.print(found)
    console.print("\nHow long each part took, in seconds\n", style="bold")
    parts = Table.grid(padding=(0, 2, 0, 0))
    parts.add_column()
    parts.add_column(justify="right", no_wrap=True)
    for part, spent in (*_parts(report), ("all of it", report.total_s)):
        parts.add_row(part, f"{spent:.2f}")
    console.print(parts)
    console.print("\nWhat ran where\n", style="bold")
    console.print(_where(report), highlight=False)


def _where(report: Report) -> str:
    several = report.containers_started != 1
    count = f"{report.containers_started} containers, {report.containers_at_once} at once at most" if several else "1"
    return (
        f"All of it on this machine ({report.cpus} CPUs). Modal's own client {_MODAL} ran in this process, beside "
        f"gpuserve's local engine in Modal's place. The model ran in Modal's own runtime; containers: {count} "
        f"(kept apart by {report.isolation}).\n"
        f"{report.docstrings:,} docstrings were embedded, {report.docs_per_s:g} a second, "
        f"{report.dimensions} dimensions each.\n\n"
        "The same app on Modal: modal run examples/quickstart.py, then modal deploy examples/quickstart.py"
    )


def _parts(report: Report) -> Iterator[tuple[str, float]]:
    labels = {
        "engine": "starting the engine",
        "cold_start": "cold start, until the first vector",
        "sources": "reading the sources, in the meantime",
        "embedding": f"embedding {report.docstrings:,} docstrings",
        "index": "writing the index, and reading it in the container",
        "questions": f"{len(report.answers)} questions over HTTP",
    }
    for part, spent in report.seconds.items():
        yield labels[part], spent
        if part == "cold_start" and report.cold_start:
            inner = {"starting the process, the app's imports, the call": spent - sum(report.cold_start.values())}
            inner |= {name.replace("_", " "): seconds for name, seconds in report.cold_start.items()}
            yield from ((f"  {name}", seconds) for name, seconds in inner.items() if seconds >= _VISIBLE_S)
