"""The image that a container is made from."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

from gpuserve.exceptions import DeclarationError
from gpuserve.specs.base import Spec
from gpuserve.specs.gpu import parse_gpu
from gpuserve.specs.image_faults import (
    apt_faults,
    index_faults,
    is_here,
    line_faults,
    local_faults,
    name_faults,
    path_faults,
    project_faults,
    python_faults,
    reference_faults,
    secret_faults,
    variable_faults,
)
from gpuserve.specs.image_layers import RANKS, Base, Layer, Local, Packages, Shell, Sync, System, Variables
from gpuserve.specs.image_lock import LOCKING, inputs_of, lock_faults
from gpuserve.specs.requirements import requirement_fault
from gpuserve.specs.secret import SecretSpec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["ImageSpec"]

_CUDA_REPOSITORY = "nvidia/cuda"
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _refuse(method: str, faults: list[str]) -> None:
    if faults:
        raise DeclarationError(f"ImageSpec.{method}", tuple(faults))


def _typed(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Where the words of a step cannot even be looked at, tell which of them are of a wrong type."""
    check = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(method)

    @wraps(method)
    def step(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except (AttributeError, TypeError):
            try:
                return check(*args, **kwargs)
            except ValidationError as error:
                wrong = error.errors(include_url=False)
        names = list(inspect.signature(method).parameters)
        # a value that fits none of several types is told once
        faults = {str(one["loc"][:1]): _type_fault(names, one) for one in reversed(wrong)}
        raise DeclarationError(f"ImageSpec.{method.__name__}", tuple(reversed(faults.values())))

    return step


def _type_fault(names: list[str], error: ErrorDetails) -> str:
    where = [names[min(part, len(names) - 1)] if isinstance(part, int) else str(part) for part in error["loc"][:1]]
    return f"{'.'.join(where)} got {error['input']!r}; {error['msg'][:1].lower()}{error['msg'][1:]}"


class ImageSpec(Spec):
    """An image, step by step; immutable: each method returns a new one.

    Every Python package is pinned, so that an image built next year is the one tested today. Layers
    are put in the order of how rarely they change: Debian packages, Python packages and builds (in
    the order written), variables, local files (attached at the start, so that editing one rebuilds
    nothing). What a method is given is checked at once, and all that is wrong with it is told.

    Examples:
        >>> image = ImageSpec.debian("3.11").apt("ffmpeg").pip("torch==2.13.0").env(HF_HUB_OFFLINE="1")
        >>> [layer.kind for layer in image.ordered_layers()]
        ['apt', 'pip', 'env']
        >>> image.fingerprint == ImageSpec.debian("3.11").env(HF_HUB_OFFLINE="1").apt("ffmpeg").pip(
        ...     "torch==2.13.0"
        ... ).fingerprint
        True
    """

    base: Base
    layers: tuple[Layer, ...] = ()
    is_draft: bool = False
    working_dir: str | None = None
    lock: str | None = None

    @classmethod
    @_typed
    def debian(cls, python: str | None = None) -> Self:
        """Debian slim with this Python, by default the one that runs now.

        Raises:
            DeclarationError: If Modal has no such Python.
        """
        python = python if python is not None else f"{sys.version_info.major}.{sys.version_info.minor}"
        _refuse("debian", [*python_faults(python)])
        return cls(base=Base(kind="debian", python=python))

    @classmethod
    @_typed
    def registry(cls, reference: str, *, python: str | None = None, secret: SecretSpec | None = None) -> Self:
        """An image of a registry, by tag or, better, by digest.

        Args:
            reference: As in ``"pytorch/pytorch:2.13.0-cuda12.8-cudnn9-runtime"`` or ``"name@sha256:…"``.
            python: The Python to add where the image has none.
            secret: The credentials of a private registry: ``REGISTRY_USERNAME`` and ``REGISTRY_PASSWORD``, or
                those of AWS or Google Cloud.

        Raises:
            DeclarationError: If the reference can change under its name.
        """
        secrets = () if secret is None else (secret,)
        _refuse("registry", [*reference_faults(reference), *python_faults(python), *secret_faults(secrets)])
        return cls(base=Base(kind="registry", reference=reference, python=python, registry_secret=secret))

    @classmethod
    @_typed
    def cuda(cls, version: str, *, python: str = "3.11") -> Self:
        """NVIDIA's CUDA image: a tag such as ``12.8.1-devel-ubuntu22.04``, or ``sha256:…``.

        Raises:
            DeclarationError: If the reference can change under its name.
        """
        joint = "@" if version.startswith("sha256:") else ":"
        return cls.registry(f"{_CUDA_REPOSITORY}{joint}{version}", python=python)

    @classmethod
    @_typed
    def dockerfile(cls, path: str | Path, *, context_dir: str | Path | None = None, python: str | None = None,
                   build_args: dict[str, str] | None = None, secrets: tuple[SecretSpec, ...] = (),
                   registry_secret: SecretSpec | None = None) -> Self:  # fmt: skip
        """A Dockerfile with its build context, whose ``.dockerignore`` is respected.

        Args:
            path: The Dockerfile.
            context_dir: What ``COPY`` copies from; by default the Dockerfile's folder.
            python: The Python to add where the image has none.
            build_args: Values of the Dockerfile's ``ARG``.
            secrets: Environment variables of the build.
            registry_secret: The credentials of the registry that the base image is in.

        Raises:
            DeclarationError: If a file is not there, or a value cannot stand in a build.
        """
        context = str(context_dir) if context_dir is not None else None
        credentials = () if registry_secret is None else (registry_secret,)
        faults = [
            *local_faults("path", str(path), "file"),
            *(local_faults("context_dir", context, "dir") if context is not None else ()),
            *python_faults(python),
            *variable_faults("build_args", build_args or {}),
            *secret_faults((*secrets, *credentials)),
        ]
        _refuse("dockerfile", faults)
        base = Base(
            kind="dockerfile",
            reference=str(path),
            context_dir=context,
            python=python,
            build_args=build_args or {},
            secrets=secrets,
            registry_secret=registry_secret,
        )
        return cls(base=base)

    @_typed
    def apt(self, *packages: str) -> Self:
        """Add Debian packages, ``name`` or ``name=version``.

        Raises:
            DeclarationError: If a name is not a Debian package's.
        """
        faults = [*_nothing("packages", packages, "'ffmpeg'"), *apt_faults(packages)]
        return self._with("apt", faults, partial(System, packages=packages))

    @_typed
    def pip(self, *requirements: str, index: str | None = None, extra_index: str | None = None, options: str = "",
            secrets: tuple[SecretSpec, ...] = (), gpu: str | None = None) -> Self:  # fmt: skip
        """Add Python packages, each pinned with ``==``, by commit or by digest.

        Args:
            requirements: As in ``"torch==2.13.0"``.
            index: The package index to use instead of PyPI.
            extra_index: One to look at besides.
            options: Passed on to ``uv pip install``, e.g. ``"--no-build-isolation"``.
            secrets: Environment variables of the build, e.g. of a private index.
            gpu: A GPU for a build that needs one.

        Raises:
            DeclarationError: With the pinned line to write, for each that is not; a draft allows them.
        """
        faults = [*_nothing("requirements", requirements, "'name==version'")]
        faults += (
            [*line_faults("requirements", requirements, "a requirement")]
            if self.is_draft
            else [fault for fault in map(requirement_fault, requirements) if fault is not None]
        )
        faults += [*index_faults(index=index, extra_index=extra_index), *secret_faults(secrets), *_gpu_faults(gpu)]
        if options:
            faults += line_faults("options", (options,), "them")
        if self.lock is not None:
            faults.append(
                f"it comes after locked({self.lock!r}), which closes the list; write .locked(…) after .pip(…)"
            )
        layer = partial(Packages, requirements=requirements, index=index, extra_index=extra_index)
        return self._with("pip", faults, partial(layer, options=options, secrets=secrets, gpu=gpu))

    @_typed
    def uv_sync(self, project_dir: str | Path = ".", *, groups: tuple[str, ...] = (), extras: tuple[str, ...] = (),
                secrets: tuple[SecretSpec, ...] = ()) -> Self:  # fmt: skip
        """Install what the ``uv.lock`` of a project says, into an environment that has nothing else.

        What was added with `pip` before is not in that environment; add it after.

        Raises:
            DeclarationError: If the folder has no ``pyproject.toml`` or no ``uv.lock``.
        """
        source = str(project_dir)
        faults = [
            *project_faults(source),
            *name_faults("groups", groups, "gpu"),
            *name_faults("extras", extras, "gpu"),
            *secret_faults(secrets),
        ]
        if any(isinstance(layer, Packages) for layer in self.layers):
            faults.append(
                "it comes after pip(…), whose packages its environment would not have; write .uv_sync() first"
            )
        return self._with(
            "uv_sync", faults, partial(Sync, project_dir=source, groups=groups, extras=extras, secrets=secrets)
        )

    @_typed
    def run(self, *commands: str, gpu: str | None = None, secrets: tuple[SecretSpec, ...] = ()) -> Self:
        """Run commands while the image is built, with a GPU where the build needs one.

        Variables of `env` are set after it; one that a build needs stands in the command: ``MAX_JOBS=4 pip …``.

        Raises:
            DeclarationError: If a command has more than one line.
        """
        faults = [
            *_nothing("commands", commands, "'pip install name==version --no-build-isolation'"),
            *line_faults("commands", commands, "one command"),
            *_gpu_faults(gpu),
            *secret_faults(secrets),
        ]
        return self._with("run", faults, partial(Shell, commands=commands, gpu=gpu, secrets=secrets))

    @_typed
    def env(self, **values: str) -> Self:
        """Set environment variables.

        Raises:
            DeclarationError: If a name or a value cannot be one.
        """
        faults = [*_nothing("values", values, "NAME='value'"), *variable_faults("env", values)]
        return self._with("env", faults, partial(Variables, values=values))

    @_typed
    def workdir(self, path: str) -> Self:
        """Set the folder that containers start in."""
        _refuse("workdir", [*path_faults(path)])
        return self.model_copy(update={"working_dir": path})

    @_typed
    def local_file(self, source: str | Path, target: str) -> Self:
        """Attach a file of this machine."""
        faults = [*local_faults("source", str(source), "file"), *path_faults(target)]
        return self._with("local_file", faults, partial(Local, kind="file", source=str(source), target=target))

    @_typed
    def local_dir(self, source: str | Path, target: str, *, ignore: tuple[str, ...] = ()) -> Self:
        """Attach a folder of this machine, without what the *ignore* patterns name."""
        faults = [*local_faults("source", str(source), "dir"), *path_faults(target)]
        faults += line_faults("ignore", ignore, "a pattern such as '*.tmp'")
        return self._with(
            "local_dir", faults, partial(Local, kind="dir", source=str(source), target=target, ignore=ignore)
        )

    @_typed
    def local_python(self, *modules: str) -> Self:
        """Attach importable modules of this machine."""
        faults = [*_nothing("modules", modules, "'shop'")]
        for name in modules:
            wrong = [*local_faults("modules", name, "python")]
            if not wrong and is_here() and importlib.util.find_spec(name.partition(".")[0]) is None:
                wrong = [f"modules got {name!r}, which cannot be imported here; write one that can"]
            faults += wrong
        _refuse("local_python", faults)
        added = tuple(Local(kind="python", source=name) for name in modules)
        return self.model_copy(update={"layers": (*self.layers, *added)})

    def draft(self) -> Self:
        """Allow unpinned packages from here on, for a first try; a draft is not for production."""
        return self.model_copy(update={"is_draft": True})

    @_typed
    def locked(self, path: str | Path) -> Self:
        """Install all Python packages of `pip`, and all that they need, from a lock file, hashes enforced.

        ``gpuserve lock FILE.py`` writes the file, for the image's Python on Modal's machines; an edit of the
        requirements makes it out of date, which is refused here.

        Raises:
            DeclarationError: If the file is missing or out of date, or the packages cannot be locked.
        """
        locked = self.model_copy(update={"lock": str(path)})
        faults = []
        pinned = [layer for layer in self.layers if isinstance(layer, Packages)]
        if not pinned:
            faults.append("there is nothing to lock; write .pip('name==version') before it")
        if any(layer.options for layer in pinned):
            faults.append("a pip(…) with options cannot be locked; build that package with .run('pip install …')")
        if self.base.python is None:
            faults.append(f"the Python of {self.base.reference!r} is not known here; write python='3.11' in its place")
        _refuse("locked", faults)
        write = LOCKING.get()
        if write is not None:
            write(locked)
        elif is_here():
            _refuse("locked", [*lock_faults(str(path), inputs_of(self.base, self.layers))])
        return locked

    def _with(self, method: str, faults: list[str], layer: Callable[[], Layer]) -> Self:
        _refuse(method, faults)
        return self.model_copy(update={"layers": (*self.layers, layer())})

    def ordered_layers(self) -> tuple[Layer, ...]:
        """The layers in the order that they are built in."""
        return tuple(sorted(self.layers, key=lambda layer: RANKS[layer.kind]))

    def requirements(self) -> tuple[str, ...]:
        """Every Python requirement of the image, in the order of installation."""
        return tuple(
            text for layer in self.ordered_layers() if isinstance(layer, Packages) for text in layer.requirements
        )

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, the same for the same declaration in every process."""
        ordered = self.model_copy(update={"layers": self.ordered_layers()})
        text = json.dumps(ordered.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _nothing(field: str, given: Collection[str], example: str) -> Iterator[str]:
    if not given:
        yield f"{field} is empty; write one, as in {example}"


def _gpu_faults(gpu: str | None) -> Iterator[str]:
    if gpu is not None:
        try:
            parse_gpu(gpu)
        except ValueError as error:
            yield str(error)
