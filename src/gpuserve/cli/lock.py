"""`gpuserve lock`: the lock files of an app's images."""

from __future__ import annotations

from pathlib import Path

import click

from gpuserve.cli.local import examples

__all__ = ["lock"]


@click.command(epilog=examples("gpuserve lock app.py", "gpuserve lock app.py --upgrade"))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--upgrade", is_flag=True, help="Take the newest versions that the declarations allow.")
def lock(file: Path, *, upgrade: bool) -> None:
    """Write the lock files that the images of an app's FILE declare with .locked(PATH).

    Each names every package that the image gets, with its version and hashes, for the image's Python on Modal's
    machines. Versions that an older lock names are kept where they still serve.
    """
    from gpuserve.tools.lock import lock_app

    written = lock_app(file, upgrade=upgrade)
    if not written:
        raise click.ClickException(f"{file} declares no locked image; write ImageSpec.….pip(…).locked('image.lock')")
    for one in written:
        click.echo(f"{one.path}: {one.packages} packages, each with its hashes")
