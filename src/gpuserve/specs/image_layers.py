"""What an image is made of: its base and its layers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from gpuserve.specs.base import Spec
from gpuserve.specs.secret import SecretSpec

__all__ = ["RANKS", "Base", "Layer", "Local", "Packages", "Shell", "Sync", "System", "Variables"]


class Base(Spec):
    """Where an image begins."""

    kind: Literal["debian", "registry", "dockerfile"]
    reference: str = ""
    python: str | None = None
    context_dir: str | None = None
    build_args: Mapping[str, str] = {}
    secrets: tuple[SecretSpec, ...] = ()
    registry_secret: SecretSpec | None = None


class System(Spec):
    """Debian packages."""

    kind: Literal["apt"] = "apt"
    packages: tuple[str, ...]


class Packages(Spec):
    """Python packages, pinned."""

    kind: Literal["pip"] = "pip"
    requirements: tuple[str, ...]
    index: str | None = None
    extra_index: str | None = None
    options: str = ""
    secrets: tuple[SecretSpec, ...] = ()
    gpu: str | None = None


class Sync(Spec):
    """A project's own lock file, installed by uv."""

    kind: Literal["uv_sync"] = "uv_sync"
    project_dir: str
    groups: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    secrets: tuple[SecretSpec, ...] = ()


class Shell(Spec):
    """Commands of a build, e.g. of a package without a wheel."""

    kind: Literal["run"] = "run"
    commands: tuple[str, ...]
    gpu: str | None = None
    secrets: tuple[SecretSpec, ...] = ()


class Variables(Spec):
    """Environment variables."""

    kind: Literal["env"] = "env"
    values: dict[str, str]


class Local(Spec):
    """A file, a folder or Python modules of this machine, attached when a container starts."""

    kind: Literal["file", "dir", "python"]
    source: str
    target: str = ""
    ignore: tuple[str, ...] = ()


Layer = Annotated[System | Packages | Sync | Shell | Variables | Local, Field(discriminator="kind")]

RANKS = {"apt": 0, "pip": 1, "uv_sync": 1, "run": 1, "env": 2, "file": 3, "dir": 3, "python": 3}
"""What changes least comes first, so that an edit rebuilds the fewest layers; inside a rank, as written."""
