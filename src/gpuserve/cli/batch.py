"""`gpuserve batch`: run, watch and mend what a file's BatchMapper declares."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpuserve.cli.local import examples

if TYPE_CHECKING:
    from gpuserve.builders.batch import BatchMapper
    from gpuserve.builders.detached import DetachedRun, MapperHandle
    from gpuserve.runtime.batch.events import BatchReport, OnEvent

__all__ = ["batch"]

_RUN = (
    click.argument("target", metavar="FILE[::NAME]"),
    click.option("--source", help="The input, a .jsonl, .csv or .parquet file or pattern, in place of the declared."),
    click.option("--output", help="The folder of the output, in place of the declared."),
    click.option("--local", "on_engine", is_flag=True, help="Run the target on the local engine."),
    click.option(
        "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write a page of the run here (HTML)."
    ),
    click.option("--json", "as_json", is_flag=True, help="Machine-readable."),
)
_DETACH = click.option(
    "--detach", is_flag=True, help="Begin it in Modal, where the file's app is deployed, and return; see `status`."
)
_LIMITS = (
    click.option("--max-usd", type=click.FloatRange(min=0, min_open=True), help="Stop at this cost, at list prices."),
    click.option("--deadline-s", type=click.FloatRange(min=0, min_open=True), help="Stop after so many seconds."),
    click.option("--takeover", is_flag=True, help="Succeed a driver that seems alive, e.g. on a machine that is gone."),
)


def _with(*options: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.group(
    epilog=examples(
        "gpuserve batch run app.py --source 'docs/*.jsonl' --output out",
        "gpuserve batch run app.py::Embed --local --report report.html",
        "gpuserve batch status out",
        "gpuserve batch retry-failed app.py",
        "gpuserve batch run app.py --detach",
        "gpuserve batch status runs/docs --volume results",
    ),
)
def batch() -> None:
    """A map over a corpus: each item at least once, each answer committed exactly once, resumed where it was.

    The target runs where modal's client points, or with --local on this machine's engine. Exit code 0: every item is
    committed; 1: some were given up (dead-letters.jsonl), or the run stopped at a limit and can go on.
    """


@batch.command()
@_with(*_RUN, *_LIMITS, _DETACH)
def run(
    target: str,
    source: str | None,
    output: str | None,
    on_engine: bool,
    report: Path | None,
    as_json: bool,
    max_usd: float | None,
    deadline_s: float | None,
    takeover: bool,
    detach: bool,
) -> None:
    """Run the BatchMapper that FILE declares; the same command goes on where it was killed or stopped."""
    given = {"source": source, "output": output, "max_usd": max_usd, "deadline_s": deadline_s}
    if detach:
        with _driver_in_modal(target, given, report, on_engine=on_engine, takeover=takeover) as handle:
            _tell_begun(handle.run(detach=True), as_json=as_json)
        return
    with _mapper(target, given, on_engine=on_engine) as mapper:
        _shown(lambda on_event: mapper.run(on_event=on_event, takeover=takeover), report, as_json=as_json)


@batch.command()
@_with(*_RUN, *_LIMITS)
def resume(
    target: str,
    source: str | None,
    output: str | None,
    on_engine: bool,
    report: Path | None,
    as_json: bool,
    max_usd: float | None,
    deadline_s: float | None,
    takeover: bool,
) -> None:
    """Go on with a run that was begun, as `run` does; refused where nothing was begun."""
    given = {"source": source, "output": output, "max_usd": max_usd, "deadline_s": deadline_s}
    with _mapper(target, given, on_engine=on_engine) as mapper:
        mapper.status()  # or there is nothing to go on with
        _shown(lambda on_event: mapper.run(on_event=on_event, takeover=takeover), report, as_json=as_json)


@batch.command("retry-failed")
@_with(*_RUN, _DETACH)
def retry_failed(
    target: str,
    source: str | None,
    output: str | None,
    on_engine: bool,
    report: Path | None,
    as_json: bool,
    detach: bool,
) -> None:
    """Run the items that were given up again; those that are answered now are added to the output."""
    if detach:
        given = {"source": source, "output": output}
        with _driver_in_modal(target, given, report, on_engine=on_engine) as handle:
            _tell_begun(handle.retry_failed(detach=True), as_json=as_json)
        return
    with _mapper(target, {"source": source, "output": output}, on_engine=on_engine) as mapper:
        _shown(lambda on_event: mapper.retry_failed(on_event=on_event), report, as_json=as_json)


@batch.command()
@click.argument("output")
@click.option("--volume", help="The Modal Volume that OUTPUT is in, of a run whose driver is in Modal.")
@click.option("--local", "on_engine", is_flag=True, help="The volume is the local engine's.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(output: str, volume: str | None, on_engine: bool, as_json: bool) -> None:
    """What the ledger in OUTPUT says of its run, whoever drives it; nothing is changed."""
    from gpuserve.builders.batch import batch_status
    from gpuserve.specs.batch import Shards
    from gpuserve.tools.batch.wording import status_lines

    with _engine() if on_engine else nullcontext():
        found = batch_status(output if volume is None else Shards(output, volume=volume))
    click.echo(json.dumps(asdict(found)) if as_json else "\n".join(status_lines(found)))


@contextmanager
def _driver_in_modal(
    target: str, given: dict[str, Any], page: Path | None, *, on_engine: bool, takeover: bool = False
) -> Iterator[MapperHandle]:
    """What FILE[::NAME] declares, for a driver that goes on without this process."""
    from gpuserve.builders.detached import MapperHandle

    if page is not None or takeover:
        raise click.UsageError("--report and --takeover are for a driver of this process; leave them out with --detach")
    with _mapper(target, given, on_engine=on_engine, stays_up=True) as mapper:
        if not isinstance(mapper, MapperHandle):
            raise click.UsageError(
                f"{type(mapper).__qualname__} has no driver in Modal; write @gpuserve.register_mapper(app) above the "
                f"class, and deploy the file"
            )
        yield mapper


def _tell_begun(begun: DetachedRun, *, as_json: bool) -> None:
    """Say where a detached run is, and how to follow it."""
    path, volume = begun.output.path, begun.output.volume
    if as_json:
        click.echo(json.dumps({"call_id": begun.call_id, "output": path, "volume": volume}))
        return
    click.echo(f"begun, into {path} of the volume {volume} (call {begun.call_id})")
    click.echo(f"follow it: gpuserve batch status {path} --volume {volume}")


@contextmanager
def _mapper(
    target: str, given: dict[str, Any], *, on_engine: bool, stays_up: bool = False
) -> Iterator[BatchMapper | MapperHandle]:
    """What FILE[::NAME] declares, with its app running; or deployed, where it *stays up* after this process."""
    from gpuserve.tools.batch.app_file import declared_run

    path, _, name = target.partition("::")
    file = Path(path)
    if not file.is_file():
        raise click.UsageError(f"there is no file {path!r}; write FILE or FILE::NAME")
    with _engine(must_be_up=stays_up) if on_engine else nullcontext():
        declared = declared_run(file, name, given)
        with declared.app.run() if declared.app is not None and not stays_up else nullcontext():
            yield declared.mapper


@contextmanager
def _engine(*, must_be_up: bool = False) -> Iterator[None]:
    """Modal's client of this process points at the local engine."""
    from gpuserve.cli.engine_process import EngineOptions, held_engine
    from gpuserve.engine.home import default_home
    from gpuserve.engine.running import find_engine

    if must_be_up and find_engine(default_home()) is None:
        raise click.UsageError("no engine is up to go on with it; start one first: gpuserve local up")
    with held_engine(default_home(), EngineOptions()) as engine:
        os.environ.update(engine.environment)
        yield


def _shown(drive: Callable[[OnEvent | None], BatchReport], page: Path | None, *, as_json: bool) -> None:
    """Drive, show how it goes, and leave with the exit code that says how it went."""
    from gpuserve.tools.batch.progress import BatchProgress
    from gpuserve.tools.batch.report import write_batch_report

    if as_json:
        report = drive(None)
    else:
        with BatchProgress() as progress:
            report = drive(progress)
    if page is not None:
        write_batch_report(report, page)
    if as_json:
        click.echo(json.dumps(asdict(report)))
    elif page is not None:
        click.echo(f"the report is in {page}")
    if report.status != "finished" or report.failed:
        raise click.exceptions.Exit(1)
