"""`gpuserve`: the local engine and the quickstart from a shell. Exit codes: 0, 1 failed, 2 misused, 130 broken off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import click

from gpuserve.exceptions import GpuserveError

__all__ = ["cli", "main"]

_START_LIMIT_S = 30.0


@click.group()
@click.version_option(package_name="gpuserve")
def cli() -> None:
    """GPU work on Modal, and a local engine that runs any Modal app offline."""


class _Local(click.Group):
    """Its own commands, and every command of modal."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or _modal_command(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        return name, self.get_command(ctx, name), args[1:]


@cli.group(cls=_Local)
@click.option("--image-check", type=click.Choice(["error", "warn"]), default="error", show_default=True)
@click.pass_context
def local(ctx: click.Context, image_check: str) -> None:
    """Any modal command on the local engine, e.g. `gpuserve local run app.py`; and up, down, status, env."""
    ctx.obj = image_check


def _note() -> dict[str, str] | None:
    """What a running engine says of itself, if one is up."""
    from gpuserve.engine import default_home

    path = default_home() / "engine.json"
    try:
        note: dict[str, str] = json.loads(path.read_text())
        os.kill(int(note["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return None
    return note


def _modal_command(name: str) -> click.Command:
    @click.command(name, context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_obj
    def run(image_check: str, arguments: tuple[str, ...]) -> None:
        sys.exit(_run_modal([name, *arguments], image_check))

    return run


def _run_modal(arguments: list[str], image_check: str) -> int:
    note = _note()
    if note is not None:
        return _call_modal(arguments, {key: value for key, value in note.items() if key != "pid"})
    from gpuserve.engine import LocalEngine, default_home

    with LocalEngine(default_home(), image_check=image_check) as engine:
        return _call_modal(arguments, dict(engine.environment))


def _call_modal(arguments: list[str], environment: dict[str, str]) -> int:
    # Ctrl-C reaches the whole group: modal decides what it means, we only wait for it
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "modal", *arguments],
            env={**os.environ, **environment},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 (one thread)
        )
        code = child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - code if code < 0 else code


@local.command()
@click.pass_obj
def up(image_check: str) -> None:
    """Start an engine in the background and leave it up."""
    from gpuserve.engine import default_home

    if _note() is not None:
        click.echo("the engine is up already")
        return
    home = default_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = home / "engine.log"
    with log.open("ab") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "gpuserve.engine", "--home", str(home), "--image-check", image_check],
            stdout=subprocess.PIPE,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    line = child.stdout.readline() if child.stdout else b""
    if not line:
        last = log.read_text(errors="replace").splitlines()[-1:]
        raise click.ClickException(f"the engine did not start: {' '.join(last)} (its log: {log})")
    click.echo(f"the engine is up (pid {child.pid}); state in {home}")


@local.command()
def down() -> None:
    """Stop the engine in the background; what was deployed stays."""
    note = _note()
    if note is None:
        click.echo("no engine is up")
        return
    pid = int(note["pid"])
    handle = os.pidfd_open(pid)
    os.kill(pid, signal.SIGTERM)
    import select

    if not select.select([handle], [], [], _START_LIMIT_S)[0]:
        raise click.ClickException(f"the engine (pid {pid}) did not stop within {_START_LIMIT_S:.0f} s")
    click.echo("the engine is down")


@local.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(as_json: bool) -> None:
    """Whether an engine is up, and where its state lies."""
    from gpuserve.engine import default_home

    note = _note()
    facts = {"up": note is not None, "home": str(default_home()), "pid": note["pid"] if note else None}
    click.echo(json.dumps(facts) if as_json else f"{'up' if note else 'down'}; state in {facts['home']}")


@local.command()
def env() -> None:
    """The variables that point a modal client at the running engine, for a shell's eval."""
    note = _note()
    if note is None:
        raise click.ClickException("no engine is up: gpuserve local up")
    for key, value in note.items():
        if key != "pid":
            click.echo(f"export {key}={value}")


@cli.command()
@click.option("--limit", type=click.IntRange(min=1), help="Embed only so many docstrings.")
@click.option("--serve", is_flag=True, help="Leave the search page up until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable report.")
def quickstart(limit: int | None, serve: bool, as_json: bool) -> None:
    """Embed the standard library's docstrings with a real model on the local engine, and search them."""
    from gpuserve.quickstart.command import run

    run(limit=limit, serve=serve, as_json=as_json)


def main() -> None:
    """Run, and turn what the user can mend into one line and an exit code."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as left:
        sys.exit(left.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GpuserveError as error:
        click.echo(f"gpuserve: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
