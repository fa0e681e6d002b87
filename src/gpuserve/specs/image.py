"""The image that a container is made from."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field

from gpuserve.exceptions import DeclarationError
from gpuserve.specs.base import Spec
from gpuserve.specs.requirements import requirement_fault

__all__ = ["Base", "ImageSpec", "Layer", "Local", "Packages", "Shell", "Sync", "System", "Variables"]

_PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")  # Source: modal 1.6.4's supported versions
_APT = re.compile(r"[a-z0-9][a-z0-9+.:-]*(=[A-Za-z0-9.+:~-]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_INDEX = re.compile(r"https?://[^\s@]+")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_CUDA_REPOSITORY = "nvidia/cuda"


class Base(Spec):
    """Where an image begins."""

    kind: Literal["debian", "registry", "dockerfile"]
    reference: str = ""
    python: str | None = None
    context_dir: str | None = None


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


class Sync(Spec):
    """A project's own lock file, installed by uv."""

    kind: Literal["uv_sync"] = "uv_sync"
    project_dir: str
    groups: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


class Shell(Spec):
    """Commands of a build, e.g. of a package without a wheel."""

    kind: Literal["run"] = "run"
    commands: tuple[str, ...]
    gpu: str | None = None


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

# What changes least comes first, so that an edit rebuilds the fewest layers; inside a rank, as written.
_RANKS = {"apt": 0, "pip": 1, "uv_sync": 1, "run": 1, "env": 2, "file": 3, "dir": 3, "python": 3}


class ImageSpec(Spec):
    """An image, step by step; immutable: each method returns a new one.

    Every Python package is pinned, so that an image built next year is the one tested today. Layers
    are put in the order of how rarely they change: Debian packages, Python packages and builds (in
    the order written), variables, local files (attached at the start, so that editing one rebuilds
    nothing).

    Examples:
        >>> image = ImageSpec.debian("3.11").apt("ffmpeg").pip("torch==2.13.0").env(HF_HUB_OFFLINE="1")
        >>> [layer.kind for layer in image.ordered_layers()]
        ['apt', 'pip', 'env']
        >>> image.fingerprint == ImageSpec.debian("3.11").apt("ffmpeg").pip("torch==2.13.0").env(
        ...     HF_HUB_OFFLINE="1"
        ... ).fingerprint
        True
    """

    base: Base
    layers: tuple[Layer, ...] = ()
    is_draft: bool = False
    working_dir: str | None = None

    @classmethod
    def debian(cls, python: str | None = None) -> Self:
        """Debian slim with this Python, by default the one that runs now.

        Raises:
            DeclarationError: If Modal has no such Python.
        """
        python = python if python is not None else f"{sys.version_info.major}.{sys.version_info.minor}"
        if python not in _PYTHONS:
            raise DeclarationError("ImageSpec.debian", (f"python got {python!r}; write one of {', '.join(_PYTHONS)}",))
        return cls(base=Base(kind="debian", python=python))

    @classmethod
    def registry(cls, reference: str, *, python: str | None = None) -> Self:
        """An image of a registry, by tag or, better, by digest; *python* is added where it has none.

        Raises:
            DeclarationError: If the reference can change under its name.
        """
        name, _, digest = reference.partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]
        faults: list[str] = []
        if not _REFERENCE.fullmatch(reference):
            faults.append(f"reference got {reference!r}; write repository:tag or repository@sha256:digest")
        elif digest and not _DIGEST.fullmatch(digest):
            faults.append(f"reference got the digest {digest!r}; write sha256: and 64 hexadecimal digits")
        elif not digest and tag in {"", "latest"}:
            faults.append(f"reference got {reference!r}, which may change; add a tag or @sha256:digest")
        if python is not None and python not in _PYTHONS:
            faults.append(f"python got {python!r}; write one of {', '.join(_PYTHONS)}")
        if faults:
            raise DeclarationError("ImageSpec.registry", tuple(faults))
        return cls(base=Base(kind="registry", reference=reference, python=python))

    @classmethod
    def cuda(cls, version: str, *, python: str = "3.11") -> Self:
        """NVIDIA's CUDA image: a tag such as ``12.8.1-devel-ubuntu22.04``, or ``sha256:…``.

        Raises:
            DeclarationError: If the reference can change under its name.
        """
        joint = "@" if version.startswith("sha256:") else ":"
        return cls.registry(f"{_CUDA_REPOSITORY}{joint}{version}", python=python)

    @classmethod
    def dockerfile(cls, path: str | Path, *, context_dir: str | Path | None = None, python: str | None = None) -> Self:
        """A Dockerfile with its build context, which is its folder unless told otherwise."""
        context = str(context_dir) if context_dir is not None else None
        return cls(base=Base(kind="dockerfile", reference=str(path), context_dir=context, python=python))

    def apt(self, *packages: str) -> Self:
        """Add Debian packages, ``name`` or ``name=version``.

        Raises:
            DeclarationError: If a name is not a Debian package's.
        """
        faults = tuple(
            f"packages got {name!r}; write a Debian package's name, as in 'ffmpeg' or 'git=1:2.39.5-0+deb12u2'"
            for name in packages
            if not _APT.fullmatch(name)
        )
        return self._with("apt", faults, System(packages=packages))

    def pip(self, *requirements: str, index: str | None = None, extra_index: str | None = None,
            options: str = "") -> Self:  # fmt: skip
        """Add Python packages, each pinned with ``==``, by commit or by digest.

        Args:
            requirements: As in ``"torch==2.13.0"``.
            index: The package index to use instead of PyPI.
            extra_index: One to look at besides.
            options: Passed on to ``uv pip install``, e.g. ``"--no-build-isolation"``.

        Raises:
            DeclarationError: With the pinned line to write, for each that is not; a draft allows them.
        """
        found = (requirement_fault(text) for text in requirements)
        faults = [] if self.is_draft else [fault for fault in found if fault is not None]
        for name, url in (("index", index), ("extra_index", extra_index)):
            if url is not None and not _INDEX.fullmatch(url):
                faults.append(f"{name} got {url!r}; write an http(s) address without a password in it")
        if "\n" in options:
            faults.append("options holds a line break; write them on one line")
        layer = Packages(requirements=requirements, index=index, extra_index=extra_index, options=options)
        return self._with("pip", tuple(faults), layer)

    def uv_sync(self, project_dir: str | Path = ".", *, groups: tuple[str, ...] = (),
                extras: tuple[str, ...] = ()) -> Self:  # fmt: skip
        """Install what the ``uv.lock`` of a project says."""
        return self._with("uv_sync", (), Sync(project_dir=str(project_dir), groups=groups, extras=extras))

    def run(self, *commands: str, gpu: str | None = None) -> Self:
        """Run commands while the image is built, with a GPU where the build needs one."""
        faults = tuple(f"commands got {one!r}; write one command on one line" for one in commands if "\n" in one)
        return self._with("run", faults, Shell(commands=commands, gpu=gpu))

    def env(self, **values: str) -> Self:
        """Set environment variables.

        Raises:
            DeclarationError: If a name or a value cannot be one.
        """
        faults = tuple(
            f"{name}={value!r}; write a name of letters, digits and _, and a value that is a str on one line"
            for name, value in values.items()
            if not _VARIABLE.fullmatch(name) or not isinstance(value, str) or "\n" in value
        )
        return self._with("env", faults, None if faults else Variables(values=values))

    def workdir(self, path: str) -> Self:
        """Set the folder that containers start in."""
        _absolute("workdir", path)
        return self.model_copy(update={"working_dir": path})

    def local_file(self, source: str | Path, target: str) -> Self:
        """Attach a file of this machine."""
        _absolute("local_file", target)
        return self._with("local_file", (), Local(kind="file", source=str(source), target=target))

    def local_dir(self, source: str | Path, target: str, *, ignore: tuple[str, ...] = ()) -> Self:
        """Attach a folder of this machine, without what the *ignore* patterns name."""
        _absolute("local_dir", target)
        return self._with("local_dir", (), Local(kind="dir", source=str(source), target=target, ignore=ignore))

    def local_python(self, *modules: str) -> Self:
        """Attach importable modules of this machine."""
        image = self
        for name in modules:
            image = image._with("local_python", (), Local(kind="python", source=name))
        return image

    def draft(self) -> Self:
        """Allow unpinned packages from here on, for a first try; a draft is not for production."""
        return self.model_copy(update={"is_draft": True})

    def _with(self, method: str, faults: tuple[str, ...], layer: Layer | None) -> Self:
        if faults or layer is None:
            raise DeclarationError(f"ImageSpec.{method}", faults)
        return self.model_copy(update={"layers": (*self.layers, layer)})

    def ordered_layers(self) -> tuple[Layer, ...]:
        """The layers in the order that they are built in."""
        return tuple(sorted(self.layers, key=lambda layer: _RANKS[layer.kind]))

    def requirements(self) -> tuple[str, ...]:
        """Every Python requirement of the image, in the order of installation."""
        return tuple(
            text for layer in self.ordered_layers() if isinstance(layer, Packages) for text in layer.requirements
        )

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, the same for the same declaration in every process."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _absolute(method: str, path: str) -> None:
    if not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DeclarationError(
            f"ImageSpec.{method}", (f"the path in the container got {path!r}; write an absolute one, as in '/data'",)
        )
