"""`gpuserve`: the local engine and the quickstart from a shell.

Exit codes: 0 done, 1 failed, 2 misused (arguments, or a state that the user can mend), 130 broken off. A modal
command that fails on the local engine keeps its own exit code.
"""

from __future__ import annotations

import os
import signal
import sys

import click
from click.shell_completion import get_completion_class

from gpuserve.cli.batch import batch
from gpuserve.cli.jobs import jobs
from gpuserve.cli.local import examples, local
from gpuserve.cli.lock import lock
from gpuserve.cli.modal_command import INTERRUPTED
from gpuserve.cli.prices import prices
from gpuserve.cli.promote import promote, rollback, served
from gpuserve.cli.weights import weights
from gpuserve.exceptions import GpuserveError

__all__ = ["cli", "main"]


@click.group(epilog="Exit codes: 0 done, 1 failed, 2 misused, 130 broken off (Ctrl-C, SIGTERM).")
@click.version_option(package_name="gpuserve")
def cli() -> None:
    """GPU work on Modal, and a local engine that runs any Modal app offline.

    Start with `gpuserve quickstart`, or with an app of yours: `gpuserve local run app.py`.
    """


cli.add_command(batch)
cli.add_command(jobs)
cli.add_command(local)
cli.add_command(lock)
cli.add_command(prices)
for command in (promote, rollback, served):
    weights.add_command(command)
cli.add_command(weights)


@cli.command()
@click.option("--limit", type=click.IntRange(min=1), help="Embed only so many docstrings.")
@click.option("--serve", is_flag=True, help="Leave the search page up until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable report.")
def quickstart(limit: int | None, serve: bool, as_json: bool) -> None:
    """Embed the standard library's docstrings with a real model on the local engine, and search them."""
    from gpuserve.quickstart.command import run

    run(limit=limit, serve=serve, as_json=as_json)


@cli.command(
    epilog=examples(
        'eval "$(gpuserve completion bash)"  # in ~/.bashrc',
        'eval "$(gpuserve completion zsh)"   # in ~/.zshrc',
        "gpuserve completion fish | source   # in ~/.config/fish/config.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete gpuserve's commands, and modal's."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"click has no completion for {shell}")
    click.echo(kind(cli, {}, "gpuserve", "_GPUSERVE_COMPLETE").source())


def main() -> None:
    """Run, and turn what the user can mend into one line and an exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # broken off, whichever way
    try:
        code = cli.main(prog_name="gpuserve", standalone_mode=False)
        if isinstance(code, int):
            sys.exit(code)  # so a command that leaves early is told here; the others return nothing
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GpuserveError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # whoever read us has left: `gpuserve local env | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
