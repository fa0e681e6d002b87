"""`python -m gpuserve.cli.reference`: the page docs/reference/cli.md, written from the commands themselves."""

from __future__ import annotations

import inspect
from typing import Any

import click

from gpuserve.cli.main import cli
from gpuserve.cli.modal_command import modal_commands

__all__ = ["render"]

_HEAD = """\
# The command line

Written by `python -m gpuserve.cli.reference`; a test says when it is out of date.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | misused: wrong arguments, or a state that you can mend (the error says how) |
| 130 | broken off: Ctrl-C or SIGTERM |

A modal command on the local engine keeps its own exit code. Errors are one `Error:` on standard error; `--json` prints
one line on standard output.
"""
_MODAL = """
## Modal's own commands: `gpuserve local COMMAND`

They are modal's, options and all (`gpuserve local COMMAND --help`), run on the engine that is up or on one that ends
with them; docs/reference/rpc-coverage.md tells what the engine implements.

| command | |
|---|---|
"""


def render() -> str:
    """The page."""
    sections = [_HEAD, *_sections(cli, "gpuserve"), _MODAL.lstrip("\n") + _modal_rows()]
    return "\n".join(sections)


def _sections(command: click.Command, path: str) -> list[str]:
    arguments = "".join(f" {one.make_metavar(click.Context(command))}" for one in command.params if _is_argument(one))
    below: dict[str, click.Command] = getattr(command, "commands", {})
    synopsis = f"{path}{' COMMAND' if below else arguments}"
    lines = [f"## `{synopsis}`\n", inspect.cleandoc(command.help or ""), "", *_examples(command.epilog or "")]
    options = [one for one in command.params if isinstance(one, click.Option)]
    if options:
        lines += ["| option | |", "|---|---|", *(_row(one) for one in options), ""]
    found = ["\n".join(lines)]
    for name, one in sorted(below.items()):
        found += _sections(one, f"{path} {name}")
    return found


def _is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


def _examples(epilog: str) -> list[str]:
    """What `examples` wrote, as a block of code; any other epilog is said at the head of the page."""
    title, *lines = epilog.lstrip("\b\n").splitlines() or [""]
    return ["```sh", *(line.strip() for line in lines), "```", ""] if title == "Examples:" else []


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    kind = "" if option.is_flag else f" {_kind(option.type)}"
    return f"| {names}{kind} | {option.help} |"


def _kind(kind: click.ParamType[Any]) -> str:
    if isinstance(kind, click.Choice):
        return " or ".join(str(choice) for choice in kind.choices)
    if isinstance(kind, click.IntRange):
        return f"{kind.min} to {kind.max}" if kind.max is not None else f"{kind.min} or more"
    return kind.name


def _modal_rows() -> str:
    visible = {name: one for name, one in modal_commands().items() if not one.hidden}
    return "".join(f"| `{name}` | {one.get_short_help_str(200)} |\n" for name, one in visible.items())


if __name__ == "__main__":
    print(render(), end="")
