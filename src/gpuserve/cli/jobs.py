"""`gpuserve jobs`: the scheduled jobs of a deployed app, their history, and what is done with them by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from gpuserve.cli.local import examples
from gpuserve.cli.one_line import OneLineGroup
from gpuserve.exceptions import JobError

__all__ = ["jobs"]

_APP = click.option("--app", "-a", "app", required=True, help="The deployed app that the jobs belong to.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
_MOST_LINES = 1000


def _of_an_app(command: Callable[..., None]) -> Callable[..., None]:
    return _APP(_JSON(command))


@click.group(
    cls=OneLineGroup,
    failure=JobError,
    epilog=examples(
        "gpuserve jobs list --app reports",
        "gpuserve jobs run Nightly --app reports --at 2026-11-25T02:00",
        "gpuserve jobs backfill Nightly --app reports --from 2026-11-01 --to 2026-11-07",
    ),
)
def jobs() -> None:
    """Scheduled jobs of a deployed app: when they are due, what became of each time, and runs by hand.

    They are asked where modal's client points: in your workspace, or on the local engine after
    `eval "$(gpuserve local env)"`.
    """


@jobs.command("list")
@_of_an_app
def list_(app: str, as_json: bool) -> None:
    """Each job with its schedule, its next two times on the schedule's clock, and its last time."""
    found = _ask(app, "list")
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        last = one["last"]
        click.echo(f"{one['job']}  {one['schedule']}{'  paused' if one['paused'] else ''}")
        click.echo(f"  next {one['next']}, then {one['then']}")
        click.echo(f"  last {last['nominal']}: {last['state']}" if last else "  not run yet")


@jobs.command()
@click.argument("job")
@click.option("--limit", type=click.IntRange(1, _MOST_LINES), default=20, show_default=True, help="Times to show.")
@_of_an_app
def history(job: str, limit: int, app: str, as_json: bool) -> None:
    """What became of each time of JOB, the newest first."""
    found = _ask(app, "history", job, limit=limit)
    if as_json:
        click.echo(json.dumps(found))
        return
    for one in found:
        tries = f"  attempt {one['attempt']}" if one["attempt"] > 1 else ""
        click.echo(
            f"{one['nominal']}  {one['state']:<9}  {one['trigger']}{tries}{'  ' if one['why'] else ''}{one['why']}"
        )
    if not found:
        click.echo("nothing has come due yet")


@jobs.command()
@click.argument("job")
@click.option("--at", default="", help="A time of its schedule, on the schedule's clock; the latest unless given.")
@click.option("--force", is_flag=True, help="Also where a run for that time succeeded: what it did, it does once more.")
@_of_an_app
def run(job: str, at: str, force: bool, app: str, as_json: bool) -> None:
    """Run JOB for one of its times, now; a time that has a run which succeeded is not run twice."""
    found = _ask(app, "run", job, at=at, force=force)
    if as_json:
        click.echo(json.dumps(found))
    elif found["state"] == "already_done":
        click.echo(f"{job} succeeded for {found['nominal']} already; it is not run again (--force runs it once more)")
    else:
        click.echo(f"started for {found['nominal']}: {found['call_id']}")


@jobs.command()
@click.argument("job")
@_of_an_app
def pause(job: str, app: str, as_json: bool) -> None:
    """Start nothing by the clock; times that come meanwhile are written down as skipped."""
    _told(_ask(app, "pause", job), as_json=as_json)


@jobs.command()
@click.argument("job")
@_of_an_app
def resume(job: str, app: str, as_json: bool) -> None:
    """Start what comes due from now on; `backfill` runs what was skipped."""
    _told(_ask(app, "resume", job), as_json=as_json)


@jobs.command()
@click.argument("job")
@click.option("--from", "first", required=True, help="The first time, e.g. 2026-11-01 or 2026-11-01T02:00.")
@click.option("--to", "last", required=True, help="The last time; what lies ahead is left to its schedule.")
@_of_an_app
def backfill(job: str, first: str, last: str, app: str, as_json: bool) -> None:
    """Have a run of JOB for each time of a range that has none which succeeded, oldest first, one after another."""
    found = _ask(app, "backfill", job, first=first, last=last)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"{found['runs']} runs to do, {found['already_done']} done or under way already")


def _told(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"{found['job']} is paused since {found['paused']}" if found["paused"] else f"{found['job']} runs")


def _ask(app: str, operation: str, job: str = "", **arguments: Any) -> Any:
    """Have the app's own function answer, which has the history at hand."""
    import modal

    from gpuserve.builders.lowering.job import OPERATIONS

    try:
        return modal.Function.from_name(app, OPERATIONS).remote(operation, job, arguments)
    except modal.exception.NotFoundError as error:
        raise JobError(f"no app {app!r} with jobs is deployed here; run: modal deploy FILE ({error})") from error
    except modal.exception.Error as error:
        raise JobError(f"Modal could not answer: {error}") from error
