"""Groups of commands that tell a failure in one line, with exit code 1, and leave a misuse what it is."""

from __future__ import annotations

from typing import Any

import click

from gpuserve.exceptions import GpuserveError

__all__ = ["OneLineGroup"]


class OneLineGroup(click.Group):
    """A group that names the errors that its commands fail with: ``@click.group(cls=OneLineGroup, failure=…)``."""

    def __init__(self, *arguments: Any, failure: type[GpuserveError], **options: Any) -> None:
        """Take what `click.Group` takes, and the error."""
        super().__init__(*arguments, **options)
        self._failure = failure

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except self._failure as error:
            raise click.ClickException(str(error)) from error
