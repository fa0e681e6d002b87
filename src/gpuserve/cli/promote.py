"""`gpuserve weights promote|rollback|served`: which published snapshot is in service under a name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpuserve.cli.weights import at_a_place, empty_cache, in_a_container

if TYPE_CHECKING:
    from gpuserve.runtime.weights.promotion import InService

__all__ = ["promote", "rollback", "served"]


@click.command()
@click.argument("name")
@click.argument("revision")
@at_a_place
def promote(name: str, revision: str, volume: str, folder: Path | None, as_json: bool) -> None:
    """Put snapshot REVISION (its name, or the beginning of its commit) in service as NAME.

    Every byte is verified first. Servers that start after this load it; exit 1 if there is no such snapshot, or it is
    damaged.
    """
    from gpuserve.runtime.weights.promotion import promoted

    _tell(_done(volume, folder, promoted, "promote_weights", name, revision), as_json=as_json)


@click.command()
@click.argument("name")
@at_a_place
def rollback(name: str, volume: str, folder: Path | None, as_json: bool) -> None:
    """Put what was in service as NAME before in service again; exit 1 if nothing was."""
    from gpuserve.runtime.weights.promotion import rolled_back

    _tell(_done(volume, folder, rolled_back, "rollback_weights", name), as_json=as_json)


@click.command()
@at_a_place
def served(volume: str, folder: Path | None, as_json: bool) -> None:
    """What is in service, by name."""
    from gpuserve.runtime.weights.promotion import in_service

    found: list[InService] = _done(volume, folder, in_service, "served_weights")
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
        return
    for one in found:
        click.echo(f"{one.name}  {one.snapshot}  since {one.at}" + (f"  before: {one.before}" if one.before else ""))
    if not found:
        click.echo("nothing is in service")


def _done(volume: str, folder: Path | None, here: Callable[..., Any], there: str, *arguments: str) -> Any:
    """Do it in a folder of this machine, or in a container with the volume."""
    if folder is None:
        return in_a_container(empty_cache(volume), there, *arguments)
    from gpuserve.runtime.weights.store import WeightsStore

    return here(WeightsStore(folder), *arguments)


def _tell(one: InService, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(one)))
        return
    click.echo(f"{one.name}: {one.snapshot} is in service" + ("" if one.changed else " already"))
    if one.before:
        click.echo(f"before: {one.before}; back to it: gpuserve weights rollback {one.name}")
