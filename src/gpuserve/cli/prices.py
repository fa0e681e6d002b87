"""`gpuserve prices`: the GPUs that Modal rents, and what an hour of each costs."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import click

from gpuserve.cli.local import examples
from gpuserve.exceptions import PricesError
from gpuserve.prices import Prices

__all__ = ["prices"]


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    name: str
    memory_gib: int | None
    most: int | None
    listed: float
    live: float | None

    @property
    def difference(self) -> float | None:
        return None if self.live is None else self.live - self.listed

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "memory_gib": self.memory_gib,
            "max_count": self.most,
            "list_usd_per_hour": self.listed,
            "live_usd_per_hour": self.live,
        }


@click.command(
    epilog=examples(
        "gpuserve prices",
        "gpuserve prices --live",
        "gpuserve prices --live --json",
    )
)
@click.option("--live", "ask", is_flag=True, help="Ask the workspace that modal's client points at for today's prices.")
@click.option(
    "--local", "on_engine", is_flag=True, help="Ask the local engine, which answers with the list; for --live."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def prices(ask: bool, on_engine: bool, as_json: bool) -> None:
    """The GPUs that Modal rents: memory, how many a container may have, and US dollars an hour.

    List prices came with this release and need no account; each is said with its day and source. They are for one GPU,
    a physical core and a GiB, in the cheapest region, preemptible.
    """
    if on_engine and not ask:
        raise click.UsageError("--local says whom --live asks; write gpuserve prices --live --local")
    listed, live = Prices.listed(), _asked(on_engine=on_engine) if ask else None
    rows = _rows(listed, live)
    if as_json:
        click.echo(json.dumps(_facts(rows, listed, live)))
    else:
        _show(rows, listed, live)
        if on_engine:
            click.echo("the local engine answers with the list; what runs on it costs nothing")


def _asked(*, on_engine: bool) -> Prices:
    from gpuserve.builders.lowering.prices import live_prices
    from gpuserve.cli.engine_process import EngineOptions, held_engine
    from gpuserve.engine.home import default_home

    try:
        with held_engine(default_home(), EngineOptions()) if on_engine else nullcontext() as engine:
            if engine is not None:
                os.environ.update(engine.environment)
            return live_prices()
    except PricesError as error:
        raise click.ClickException(str(error)) from error


def _rows(listed: Prices, live: Prices | None) -> list[_Row]:
    from gpuserve.specs.gpu import CATALOGUE

    before = _by_name(listed)
    now = {} if live is None else {name: usd for name, usd in _by_name(live).items() if name not in live.missing}
    return [
        _Row(name, kind.memory_gib if kind else None, kind.max_count if kind else None, usd, now.get(name))
        for name, usd in before.items()
        for kind in (CATALOGUE.get(name),)
    ]


def _by_name(prices: Prices) -> dict[str, float]:
    return {**prices.gpus, "cpu": prices.core_usd_per_hour, "memory": prices.gib_usd_per_hour}


def _facts(rows: list[_Row], listed: Prices, live: Prices | None) -> dict[str, Any]:
    return {
        "list": {"as_of": listed.as_of, "source": listed.source},
        "live": {"as_of": live.as_of, "source": live.source, "unknown": list(live.unknown)} if live else None,
        "prices": [row.facts() for row in rows],
    }


_UNITS = {"cpu": "a physical core", "memory": "a GiB of memory"}


def _show(rows: list[_Row], listed: Prices, live: Prices | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("GPU")
    for column in ("GiB", "most", f"list {listed.as_of}", *((f"live {live.as_of}", "difference") if live else ())):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = [_whole(row.memory_gib), _whole(row.most), f"${row.listed:.4f}"]
        if live is not None:
            numbers += [_usd(row.live), _difference(row)]
        table.add_row(_UNITS.get(row.name, row.name), *numbers)
    console.print(table)
    console.print(f"US dollars an hour; the list: {listed.source}, {listed.as_of}", soft_wrap=True)
    if live is not None:
        console.print(f"live: {live.source}, {live.as_of}", soft_wrap=True)
        if live.unknown:
            console.print(f"priced there, and unknown to this release: {', '.join(live.unknown)}", soft_wrap=True)


def _whole(number: int | None) -> str:
    return "" if number is None else str(number)


def _usd(usd: float | None) -> str:
    return "not named" if usd is None else f"${usd:.4f}"


def _difference(row: _Row) -> str:
    if row.difference is None or not row.listed:
        return ""
    return f"{row.difference / row.listed:+.1%}"
