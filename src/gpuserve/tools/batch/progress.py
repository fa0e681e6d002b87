"""A run's progress while it goes: a bar in a terminal, a cell's output in a notebook, plain lines anywhere else."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

from gpuserve.exceptions import DeclarationError
from gpuserve.runtime.batch.events import BatchEvent, ItemFailed, Progress, RunFinished, RunStarted
from gpuserve.tools.batch.wording import failed_line, finished_lines, progress_line, started_line

__all__ = ["BatchProgress"]

_SHOWN_FAILURES = 5
_KINDS = ("auto", "bar", "lines", "notebook")
Kind = Literal["auto", "bar", "lines", "notebook"]


class _View(Protocol):
    def say(self, lines: Iterable[str]) -> None:
        """Write lines that stay."""

    def show(self, event: Progress) -> None:
        """Show where the run is."""

    def close(self) -> None:
        """Nothing more comes."""


class BatchProgress:
    """What `BatchMapper.run` tells, shown to whoever watches: ``mapper.run(on_event=BatchProgress())``.

    A terminal gets a bar with rate, time left, cost, containers and failures; a notebook the same in the cell's output,
    without a widget library; a file or a pipe a line every *every_s* seconds. The first five failures are told as they
    come, the others are counted.

    Args:
        kind: ``auto``, ``bar``, ``lines`` or ``notebook``.
        every_s: Seconds between plain lines, 0 to 3600.
        file: Where to write; standard error unless given.

    Raises:
        DeclarationError: If *kind* or *every_s* is none of these.

    Examples:
        >>> import sys, gpuserve, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mapper = gpuserve.BatchMapper(target=lambda batch: batch, source=["a", "b"], output=folder + "/out")
        ...     report = mapper.run(on_event=gpuserve.BatchProgress(kind="lines", file=sys.stdout))
        into ...out: 2 items
        ...finished: 2 of 2 items in 1 file; this run 0 s at .../s
    """

    def __init__(self, kind: Kind = "auto", *, every_s: float = 10.0, file: TextIO | None = None) -> None:
        faults = []
        if kind not in _KINDS:
            faults.append(f"kind got {kind!r}: one of {', '.join(_KINDS)}")
        if isinstance(every_s, bool) or not isinstance(every_s, int | float) or not 0 <= every_s <= 3600:  # noqa: PLR2004
            faults.append(f"every_s got {every_s!r}: seconds, 0 to 3600")
        if faults:
            raise DeclarationError("this progress", tuple(faults))
        self._kind, self._every_s = kind, every_s
        self._file = file if file is not None else sys.stderr
        self._view: _View | None = None
        self._failures = 0

    def __call__(self, event: BatchEvent) -> None:
        """Show one event."""
        if self._view is None:
            self._view = self._open()
        if isinstance(event, RunStarted):
            self._failures = 0
            self._view.say([started_line(event)])
        elif isinstance(event, Progress):
            self._view.show(event)
        elif isinstance(event, ItemFailed):
            self._failures += 1
            if self._failures <= _SHOWN_FAILURES:
                self._view.say([failed_line(event)])
            elif self._failures == _SHOWN_FAILURES + 1:
                self._view.say(["more failures are only counted here; all of them are in dead-letters.jsonl"])
        elif isinstance(event, RunFinished):
            self.close()
            _Lines(self._file, 0).say(finished_lines(event.report))

    def close(self) -> None:
        """Take the bar away; a run that raises tells no end."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def __enter__(self) -> Self:
        """Show, and take the bar away at the end whatever happens."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.close()

    def _open(self) -> _View:
        kind = self._kind
        if kind == "auto":
            kind = "notebook" if _in_a_notebook() else "bar" if self._file.isatty() else "lines"
        if kind == "notebook":
            return _Cell()
        return _Bar(self._file) if kind == "bar" else _Lines(self._file, self._every_s)


def _in_a_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this, which shows rich output."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class _Lines:
    """A line now and then."""

    def __init__(self, file: TextIO, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._every_s, self._clock = file, every_s, clock
        self._due = clock() + every_s  # a short run has no line between its first and its last

    def say(self, lines: Iterable[str]) -> None:
        """Write lines."""
        self._file.write("".join(f"{line}\n" for line in lines))
        self._file.flush()

    def show(self, event: Progress) -> None:
        """Write where the run is, if it is time."""
        if self._clock() >= self._due:
            self._due = self._clock() + self._every_s
            self.say([progress_line(event)])

    def close(self) -> None:
        """Nothing is left to do."""


class _Bar:
    """A bar that stays at the bottom of a terminal."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(file=file, highlight=False, markup=False, emoji=False)
        told = TextColumn("{task.description}", markup=False)
        self._bar = Bar(SpinnerColumn(), BarColumn(bar_width=24), told, console=self._console, transient=True)
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def say(self, lines: Iterable[str]) -> None:
        """Write lines above it."""
        for line in lines:
            self._console.print(line, soft_wrap=True)

    def show(self, event: Progress) -> None:
        """Move it."""
        settled = event.done + event.failed
        self._bar.update(self._task, description=progress_line(event), completed=settled, total=event.total)

    def close(self) -> None:
        """Take it away."""
        self._bar.stop()


class _Cell:
    """The output of a notebook's cell, which is written anew; front ends without HTML show its text."""

    def __init__(self) -> None:
        from IPython.display import display

        self._said: list[str] = []
        self._progress: Progress | None = None
        show: Callable[..., Any] = display
        self._handle = show(self, display_id=True)

    def say(self, lines: Iterable[str]) -> None:
        """Write lines."""
        self._said += lines
        self._handle.update(self)

    def show(self, event: Progress) -> None:
        """Show where the run is."""
        self._progress = event
        self._handle.update(self)

    def close(self) -> None:
        """What was shown last stays."""

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a front end shows."""
        told = progress_line(self._progress) if self._progress is not None else "starting"
        lines = [*self._said, told]
        return {
            "text/plain": "\n".join(lines),
            "text/html": f"{_meter(self._progress)}<pre>{html.escape(chr(10).join(lines))}</pre>",
        }


def _meter(event: Progress | None) -> str:
    if event is None or event.total is None:
        return '<progress aria-label="batch run" style="width:100%"></progress>'
    settled = event.done + event.failed
    share = f'value="{settled}" max="{max(event.total, 1)}"'
    return f'<progress aria-label="batch run" style="width:100%" {share}></progress>'
