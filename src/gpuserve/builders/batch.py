"""`BatchMapper`: a map over a corpus that loses nothing, and commits each item once."""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpuserve.exceptions import BatchRunError, DeclarationError
from gpuserve.runtime.batch.events import BatchReport, BatchStatus, OnEvent
from gpuserve.specs.batch import (
    BatchDeclaration,
    MapBatching,
    MapRetries,
    Shards,
)
from gpuserve.specs.image import ImageSpec

__all__ = ["BatchMapper", "batch_status"]

_FIELDS = tuple(BatchDeclaration.model_fields)
_TOLD_BY = ("ledger/run.json", "ledger/log", "ledger/driver.json")


class BatchMapper:
    """Call a server or a function with every item of a corpus: at least once each, and committed exactly once.

    Subclass it and declare, or give everything to the constructor. `run` reads the source without holding it in memory,
    packs items into batches of like cost, keeps several under way, tries failures again, parts a failing batch down to
    the item at fault, and writes answers in input order. Killed or stopped, the same `run` goes on where it was.

    Attributes:
        target: A registered `WarmModelServer`, or a handle of it; a ``modal.Function`` that answers a list; the name of
            a deployed one, ``"app/Class.method"`` or ``"app/function"``; or a function of this process.
        method: The server's batched method, where it has several.
        source: `Jsonl`, `Csv`, `Parquet`, `HfDataset`, `Items`, a path, or an iterable.
        output: `Shards`, or the path of a folder.
        batching: `MapBatching`.
        retries: `MapRetries`.
        on_bad_input: ``dead_letter`` or ``stop``.
        max_usd: Stop there.
        deadline_s: Stop so many seconds after the start.
        image: What a driver in Modal is made from, see `register_mapper`.

    Raises:
        DeclarationError: With every fault.

    Examples:
        >>> import gpuserve, pathlib, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> lengths = gpuserve.BatchMapper(
        ...     target=lambda texts: [len(text) for text in texts], source=["a", "bcd"], output=folder.name + "/out"
        ... )
        >>> report = lengths.run()
        >>> report.status, report.done
        ('finished', 2)
        >>> print(pathlib.Path(folder.name, "out/part-000000.jsonl").read_text(), end="")
        {"id":0,"output":1}
        {"id":1,"output":3}
        >>> folder.cleanup()
    """

    target: ClassVar[Any] = None
    method: ClassVar[str | None] = None
    source: ClassVar[Any] = None
    output: ClassVar[Shards | str | Path | None] = None
    batching: ClassVar[MapBatching] = MapBatching()
    retries: ClassVar[MapRetries] = MapRetries()
    on_bad_input: ClassVar[Literal["dead_letter", "stop"]] = "dead_letter"
    max_usd: ClassVar[float | None] = None
    deadline_s: ClassVar[float | None] = None
    usd_per_container_hour: ClassVar[float | None] = None
    name: ClassVar[str] = ""
    image: ClassVar[ImageSpec | None] = None

    def __init__(self, **declared: Any) -> None:
        unknown = sorted(set(declared) - set(_FIELDS))
        if unknown:
            raise DeclarationError(
                type(self).__qualname__, (f"{', '.join(unknown)} is not a field; write one of {', '.join(_FIELDS)}",)
            )
        self._declared = declared

    def declaration(self, **given: Any) -> BatchDeclaration:
        """All that is declared, checked.

        Raises:
            DeclarationError: With every fault.
        """
        # a function that stands on the class must not become its method
        values = {name: inspect.getattr_static(type(self), name) for name in _FIELDS}
        values = {name: one.__func__ if isinstance(one, staticmethod) else one for name, one in values.items()}
        values |= {**self._declared, **{name: one for name, one in given.items() if one is not None}}
        missing = [name for name in ("target", "source", "output") if values[name] is None]
        if missing:
            raise DeclarationError(
                type(self).__qualname__, tuple(f"{name} is missing; write {name} = …" for name in missing)
            )
        try:
            return BatchDeclaration(**values)
        except DeclarationError as error:
            raise DeclarationError(type(self).__qualname__, error.faults) from None

    def run(
        self,
        source: Any = None,
        output: Any = None,
        *,
        on_event: OnEvent | None = None,
        takeover: bool = False,
    ) -> BatchReport:
        """Run to the end, or to a limit; called again, go on from there.

        Args:
            source: Instead of the declared one.
            output: Instead of the declared one.
            on_event: Told what happens, in order, from the driver's thread.
            takeover: Succeed a driver that seems alive, e.g. on another machine that is gone.

        Raises:
            OutputMismatchError: If the folder belongs to another run.
            BatchBusyError: If another driver is at work on it.
            FencedError: If another driver has taken over.
            BadInputError: If the input cannot be used.
            DiskFullError: If there is no room; what is committed is whole.
        """
        report: BatchReport = _in_a_loop(lambda: self.run_async(source, output, on_event=on_event, takeover=takeover))
        return report

    async def run_async(
        self,
        source: Any = None,
        output: Any = None,
        *,
        on_event: OnEvent | None = None,
        takeover: bool = False,
    ) -> BatchReport:
        """The same, in the caller's own event loop."""
        from gpuserve.builders.batch_run import driver_for

        declaration = self.declaration(source=source, output=output)
        driver = await asyncio.to_thread(driver_for, declaration, on_event or _ignore, takeover=takeover)
        return await driver.run()

    def status(self, output: Any = None) -> BatchStatus:
        """What the ledger says of the run, whoever drives it.

        Raises:
            BatchRunError: If the folder holds no run.
        """
        chosen = output or self._declared.get("output") or type(self).output
        if chosen is None:
            raise BatchRunError(f"{type(self).__qualname__} has no output; write status('folder')")
        return batch_status(chosen)

    def retry_failed(self, output: Any = None, *, on_event: OnEvent | None = None) -> BatchReport:
        """Run the items of the dead letters again; those that are answered now are added to the output.

        Raises:
            BatchRunError: If the run is not finished, or nothing failed.
        """
        from gpuserve.builders.batch_run import retry_driver_for

        declaration = self.declaration(output=output)
        report: BatchReport = _in_a_loop(lambda: retry_driver_for(declaration, on_event or _ignore).run())
        return report


def batch_status(output: Shards | str | Path) -> BatchStatus:
    """What the ledger in *output* says of its run.

    Raises:
        BatchRunError: If there is none.
    """
    from gpuserve.runtime.batch.status import status_of

    if not isinstance(output, Shards):
        return status_of(Path(output))
    if output.volume is None:
        return status_of(Path(output.path))
    from gpuserve.runtime.ports import copied_from_volume

    told_as = f"{output.path} in volume {output.volume}"
    with tempfile.TemporaryDirectory() as copy:
        if not copied_from_volume(output.volume, output.path, _TOLD_BY, Path(copy)):
            raise BatchRunError(f"{told_as} holds no run")
        return status_of(Path(copy), told_as=told_as)


def _ignore(_event: object) -> None:
    """Nobody asked."""


def _in_a_loop(begin: Callable[[], Any]) -> Any:
    """Run in a loop of our own; beside the caller's, where one runs, as in a notebook's cell."""
    if asyncio._get_running_loop() is None:
        return asyncio.run(begin())
    outcome: list[Any] = []

    def beside() -> None:
        try:
            outcome.append((asyncio.run(begin()), None))
        except BaseException as error:  # noqa: BLE001 (raised where it was asked for)
            outcome.append((None, error))

    thread = threading.Thread(target=beside, name="gpuserve-batch")
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value
