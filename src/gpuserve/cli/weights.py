"""`gpuserve weights`: fetch, list, verify and prune what a Modal Volume or a folder holds; `promote` has the rest."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpuserve.cli.local import examples
from gpuserve.cli.one_line import OneLineGroup
from gpuserve.exceptions import WeightsError

if TYPE_CHECKING:
    from gpuserve.builders.weights import VolumeWeightsCache
    from gpuserve.runtime.weights.fetch import Progress

__all__ = ["at_a_place", "empty_cache", "in_a_container", "weights"]

_PLACES = (
    click.option("--volume", default="gpuserve-weights", show_default=True, help="The Modal Volume."),
    click.option("--folder", type=click.Path(path_type=Path), help="A folder of this machine instead of a volume."),
    click.option("--json", "as_json", is_flag=True, help="Machine-readable."),
)


def at_a_place(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which volume, or which folder of this machine."""
    for option in reversed(_PLACES):
        command = option(command)
    return command


@click.group(
    cls=OneLineGroup,
    failure=WeightsError,
    epilog=examples(
        "gpuserve weights fetch sentence-transformers/all-MiniLM-L6-v2 --revision COMMIT",
        "gpuserve weights verify --volume models",
        "gpuserve weights prune --volume models --keep SNAPSHOT --apply",
    ),
)
def weights() -> None:
    """Model weights in a Modal Volume: fetched once, every byte verified, published whole or not at all.

    The functions run where modal's client points: in your workspace, or on the local engine after
    `eval "$(gpuserve local env)"`.
    """


@weights.command()
@click.argument("repo")
@click.option("--revision", default="main", show_default=True, help="A commit of 40 digits; a branch is resolved once.")
@click.option("--include", multiple=True, help="Take only files of this pattern; may be repeated.")
@click.option("--exclude", multiple=True, help="Leave files of this pattern; may be repeated.")
@click.option("--allow-unsafe", multiple=True, help="Take this one file though loading it may run code.")
@click.option("--secret", help="The Modal Secret with HF_TOKEN, for private and gated repositories.")
@click.option("--refresh", is_flag=True, help="Ask the hub anew what a branch stands for.")
@at_a_place
def fetch(
    repo: str,
    revision: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    allow_unsafe: tuple[str, ...],
    secret: str | None,
    refresh: bool,
    volume: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Fetch REPO of the Hugging Face Hub, or the local folder REPO where it begins with / or a dot."""
    from gpuserve.specs.source import FolderSource, HubSource

    chosen: dict[str, Any] = {"include": include, "exclude": exclude, "allow_unsafe": allow_unsafe}
    if repo.startswith(("/", ".")):
        if folder is None:
            raise click.UsageError("a folder of this machine is fetched into --folder; a container does not see it")
        source: Any = FolderSource(str(Path(repo).resolve()), **chosen)
    else:
        source = HubSource(repo, revision=revision, **chosen)
    cache = empty_cache(volume, source, secret)
    if folder is None:
        report = in_a_container(cache, "fetch_weights", refresh)
    else:
        with _bar(shown=not as_json) as told:
            report = cache.fetch(root=folder, refresh=refresh, on_progress=told)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    verb = "fetched and published" if report.published else "there already, and whole"
    click.echo(f"{verb}: {report.snapshot}\n{report.files} files, {report.size:,} bytes, commit {report.commit}")


@weights.command("list")
@at_a_place
def list_(volume: str, folder: Path | None, as_json: bool) -> None:
    """What is published; not verified."""
    from gpuserve.runtime.weights.pruning import listed
    from gpuserve.runtime.weights.store import WeightsStore

    lines = listed(WeightsStore(folder)) if folder is not None else in_a_container(empty_cache(volume), "list_weights")
    if as_json:
        click.echo(json.dumps([asdict(one) for one in lines]))
        return
    for one in lines:
        click.echo(f"{one.snapshot}  {one.size:,} bytes  {one.created_at}" + (f"  {one.fault}" if one.fault else ""))
    if not lines:
        click.echo("nothing is published")


@weights.command()
@click.argument("snapshot", default="")
@at_a_place
def verify(snapshot: str, volume: str, folder: Path | None, as_json: bool) -> None:
    """Read every byte of every snapshot, or of one, against its manifest; exit 1 if one is damaged."""
    from gpuserve.runtime.weights.pruning import verified
    from gpuserve.runtime.weights.store import WeightsStore

    if folder is not None:
        found = verified(WeightsStore(folder), snapshot)
    else:
        found = in_a_container(empty_cache(volume), "verify_weights", snapshot)
    if as_json:
        click.echo(json.dumps([{"snapshot": key, "fault": fault} for key, fault in found]))
    else:
        for key, fault in found:
            click.echo(f"{key}  {fault or 'whole'}")
        if not found:
            click.echo("nothing is published")
    if any(fault for _, fault in found):
        raise click.exceptions.Exit(1)


@weights.command()
@click.option("--keep", multiple=True, help="A snapshot to keep, by its name in the list; may be repeated.")
@click.option("--apply", is_flag=True, help="Remove them; they are only shown otherwise.")
@at_a_place
def prune(keep: tuple[str, ...], apply: bool, volume: str, folder: Path | None, as_json: bool) -> None:
    """Show, and with --apply remove, what is not kept and what interrupted fetches left."""
    from gpuserve.runtime.weights.pruning import pruned
    from gpuserve.runtime.weights.store import WeightsStore

    if folder is not None:
        gone = pruned(WeightsStore(folder), keep, apply=apply)
    else:
        gone = in_a_container(empty_cache(volume), "prune_weights", keep, apply)
    if as_json:
        click.echo(json.dumps(gone))
        return
    for key in gone:
        click.echo(f"{'removed' if apply else 'would remove'}  {key}")


def empty_cache(volume: str, source: Any = None, secret: str | None = None) -> VolumeWeightsCache:
    """The cache of a volume, for functions that look at it."""
    from gpuserve.builders.weights import VolumeWeightsCache
    from gpuserve.specs.secret import SecretSpec
    from gpuserve.specs.source import HubSource

    token = SecretSpec(name=secret, required_keys=("HF_TOKEN",)) if secret is not None else None
    # what only looks at a volume asks no source
    return VolumeWeightsCache(source=source or HubSource("org/model"), volume=volume, token=token, env=_hub_settings())


def _hub_settings() -> dict[str, str]:
    """The hub that this shell uses is the one that the container uses."""
    return {"HF_ENDPOINT": os.environ["HF_ENDPOINT"]} if os.environ.get("HF_ENDPOINT") else {}


def in_a_container(cache: VolumeWeightsCache, name: str, *arguments: Any) -> Any:
    """Call one function of the cache in an app that lives as long as the call."""
    import modal

    from gpuserve.builders.lowering.weights import declare_weights_function
    from gpuserve.runtime.weights import functions

    app = modal.App("gpuserve-weights")
    function = declare_weights_function(app, cache, getattr(functions, name), name=name)
    try:
        with app.run():
            return function.remote(*arguments)
    except modal.exception.Error as error:
        raise WeightsError(f"Modal could not run {name}: {error}") from error


def _bar(*, shown: bool) -> AbstractContextManager[Callable[[Progress], None]]:
    return _Bar() if shown else nullcontext(lambda _progress: None)


class _Bar:
    """A progress bar of all bytes."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("weights", total=None)
        self._lock = threading.Lock()

    def __enter__(self) -> Callable[[Progress], None]:
        self._progress.start()
        return self._moved

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _moved(self, progress: Progress) -> None:
        with self._lock:
            name = progress.file.rpartition("/")[2]
            self._progress.update(self._task, description=name, completed=progress.done, total=progress.total)
