"""`gpuserve local`: the engine's own commands, and every command of modal on it."""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from gpuserve.cli.modal_command import KNOWN, call_modal, modal_commands

if TYPE_CHECKING:
    from gpuserve.engine.running import Running

__all__ = ["examples", "local"]

_IMAGE_MODE = click.Choice(["host", "venv"])
_IMAGE_MODE_HELP = (
    "What containers run on: this interpreter (host, the default), or an environment that uv builds for each image "
    "from its pins (venv)."
)
_IMAGE_CHECK = click.Choice(["error", "warn"])
_IMAGE_CHECK_HELP = (
    "What to do with an image that asks for other packages than this interpreter has: refuse it (error, the "
    "default), or say so and go on (warn)."
)


class _Local(click.Group):
    """Its own commands, and every command of modal."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of ours, or one of modal's: run on the engine, or described by modal itself."""
        ours = super().get_command(ctx, cmd_name)
        if ours is not None:
            return ours
        if cmd_name in KNOWN and not ctx.resilient_parsing:
            return _on_engine(cmd_name)
        theirs = modal_commands().get(cmd_name)
        return theirs if theirs is None or ctx.resilient_parsing else _on_engine(cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours first."""
        return [*super().list_commands(ctx), *(name for name, one in modal_commands().items() if not one.hidden)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown name with those that are near."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.list_commands(ctx))
            hint = f"Did you mean {' or '.join(near)}?" if near else "All of them: gpuserve local --help"
            raise click.UsageError(f"neither gpuserve nor modal has a command '{name}'. {hint}", ctx)
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two lists: what is ours, and what is modal's."""
        ours = [(name, self.commands[name].get_short_help_str(80)) for name in super().list_commands(ctx)]
        theirs = [(name, one.get_short_help_str(80)) for name, one in modal_commands().items() if not one.hidden]
        for title, rows in (("The engine", ours), ("Modal's commands, on the engine", theirs)):
            with formatter.section(title):
                formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """An epilog that click leaves as it is."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


@click.group(
    cls=_Local,
    epilog=examples(
        "gpuserve local run app.py",
        "gpuserve local deploy app.py",
        "gpuserve local app list",
        'gpuserve local up && eval "$(gpuserve local env)" && modal volume list',
    ),
)
@click.option("--image-mode", type=_IMAGE_MODE, help=_IMAGE_MODE_HELP)
@click.option("--image-check", type=_IMAGE_CHECK, help=_IMAGE_CHECK_HELP)
@click.option("--variant", metavar="NAME", help="The variant of the app's servers (GPUSERVE_VARIANT).")
@click.pass_context
def local(ctx: click.Context, image_mode: str | None, image_check: str | None, variant: str | None) -> None:
    """Run any modal command on the local engine: offline, on this machine, without an account.

    A modal command joins the engine that is up, or starts one that ends with it. `up` leaves one running. Deployed
    apps, volumes, dicts, queues and secrets are kept in the state folder (GPUSERVE_HOME).
    """
    ctx.obj = (image_check, image_mode)
    if variant is not None:
        os.environ["GPUSERVE_VARIANT"] = variant  # modal's command is started with it


def _on_engine(name: str) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_obj
    def run(images: tuple[str | None, str | None], arguments: tuple[str, ...]) -> None:
        from gpuserve.cli.engine_process import EngineOptions, held_engine
        from gpuserve.engine.home import default_home

        with held_engine(default_home(), EngineOptions(images[0], image_mode=images[1])) as engine:
            trying = {"GPUSERVE_TRY_PAGE": "1"} if name == "serve" and "--help" not in arguments else {}
            if trying:
                click.echo("a server of gpuserve's has a page to try it from: its address below, and /try", err=True)
            code = call_modal([name, *arguments], {**engine.environment, **trying})
        sys.exit(code)

    return run


def _running() -> Running | None:
    from gpuserve.engine.home import default_home
    from gpuserve.engine.running import find_engine

    return find_engine(default_home())


@local.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Listen on this port of 127.0.0.1 (0: any free one).")
@click.option("--image-mode", type=_IMAGE_MODE, help=_IMAGE_MODE_HELP)
@click.option("--image-check", type=_IMAGE_CHECK, help=_IMAGE_CHECK_HELP)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_obj
def up(
    from_group: tuple[str | None, str | None],
    port: int | None,
    image_mode: str | None,
    image_check: str | None,
    as_json: bool,
) -> None:
    """Start an engine in the background, and leave it up.

    It listens on a unix socket that only you can reach, or with --port on loopback; clients need its token in
    either case. Where an engine is up already, nothing changes.
    """
    from gpuserve.cli.engine_process import EngineOptions, keep_engine
    from gpuserve.engine.home import default_home

    home = default_home()
    engine, was_up = keep_engine(home, EngineOptions(image_check or from_group[0], port, image_mode or from_group[1]))
    url = engine.environment["MODAL_SERVER_URL"]
    if as_json:
        _print_json({"pid": engine.pid, "home": str(home), "server_url": url, "was_up": was_up})
    else:
        click.echo(f"the engine is up{' already' if was_up else ''} (pid {engine.pid}) at {url}; state in {home}")


@local.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def down(as_json: bool) -> None:
    """Stop the engine in the background; what was deployed stays.

    Containers leave first, and their exit hooks run.
    """
    engine = _running()
    if engine is not None:
        engine.stop()
    if as_json:
        _print_json({"was_up": engine is not None, "pid": engine.pid if engine else None})
    else:
        click.echo("no engine is up" if engine is None else f"the engine is down (it was pid {engine.pid})")


@local.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(as_json: bool) -> None:
    """Whether an engine is up, and what it runs."""
    from gpuserve.engine.home import default_home

    engine = _running()
    facts = engine.status() if engine is not None else None
    if as_json:
        _print_json({"up": True, **facts} if facts else {"up": False, "home": str(default_home()), "pid": None})
    elif facts is None:
        click.echo(f"no engine is up; state in {default_home()}")
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    lines = {
        "up": f"pid {facts['pid']}, for {facts['uptime_s']:.0f} s" + (", until the command ends" * facts["transient"]),
        "url": facts["server_url"],
        "state": facts["home"],
        "containers": f"{facts['containers']}, kept apart by {facts['isolation']}",
        "images": facts["image_mode"] + (f", check {facts['image_check']}" * (facts["image_mode"] == "host")),
    }
    for name, value in lines.items():
        console.print(f"{name:<12} {value}", soft_wrap=True)
    apps = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("app", "id", "state", "version", "containers"):
        apps.add_column(column, overflow="fold")
    for app in facts["apps"]:
        apps.add_row(app["name"], app["id"], app["state"], str(app["version"] or ""), str(app["containers"]))
    console.print(apps if facts["apps"] else "apps         none")


@local.command(epilog=examples('eval "$(gpuserve local env)"'))
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def env(as_json: bool) -> None:
    """Print the variables that point a modal client at the engine.

    A shell evaluates them; --json gives them to programs.
    """
    engine = _running()
    if engine is None:
        raise click.ClickException("no engine is up; start one: gpuserve local up")
    if as_json:
        _print_json(engine.environment)
        return
    for name, value in engine.environment.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def prune(as_json: bool) -> None:
    """Remove the environments that were built for images (--image-mode venv) and that no app uses.

    What is removed is built again when it is needed.
    """
    from gpuserve.cli.engine_process import EngineOptions, held_engine
    from gpuserve.engine.home import default_home

    engine = _running()
    if engine is not None:
        if (engine.status() or {}).get("image_mode") == "host":
            raise click.ClickException(
                "the engine that is up has --image-mode host; stop it first: gpuserve local down"
            )
        pruned = engine.prune()
    else:
        with held_engine(default_home(), EngineOptions(image_mode="venv")) as own:
            pruned = own.prune()
    if as_json:
        _print_json(pruned)
    else:
        click.echo(f"{pruned['removed']} environments removed, {pruned['freed_bytes'] / 2**20:,.0f} MiB freed")


def _print_json(facts: dict[str, Any]) -> None:
    click.echo(json.dumps(facts))
