"""An image, declared to modal, with gpuserve in it."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import modal
from packaging.requirements import Requirement

from gpuserve.builders.lowering.secret import modal_secret
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.image_layers import Layer, Local, Packages, Shell, Sync, System, Variables
from gpuserve.specs.secret import SecretSpec

__all__ = ["locked_requirements", "modal_image"]

_PACKAGE = Path(__file__).parents[2]
_IN_CONTAINER = "/root/gpuserve"
# What a container never needs of gpuserve: the engine and the command line stay at home.
_LEFT_OUT = ("**/__pycache__", "engine", "cli", "testing.py")
# Source: the uv that the tests build with, from PyPI; Modal copies it from ghcr.io/astral-sh/uv.
_UV_VERSION = "0.13.9"
_CORE = ("pydantic", "packaging")
_HTTP = ("fastapi", "orjson", "prometheus-client")
# What listens on a port: where Modal brings the requests, it is Modal's own.
_LISTENING = ("uvicorn", "uvloop", "httptools")
Transport = Literal["asgi", "server"]
_NEEDED = {None: _CORE, "asgi": _CORE + _HTTP, "server": _CORE + _HTTP + _LISTENING}


@dataclass(frozen=True, slots=True)
class Lock:
    """All Python packages, from a file that names each with its hashes."""

    path: str


def modal_image(spec: ImageSpec, *, http: Transport | None = None) -> modal.Image:
    """Modal's image for *spec*.

    A released gpuserve is resolved together with the first of the user's own packages; a checkout is
    attached as a folder, last, so that editing it rebuilds nothing.

    Args:
        spec: What is declared.
        http: The transport of its HTTP face, which must be in it too; ``None`` for none.
    """
    image = _base(spec)
    workdir = spec.working_dir
    for layer in _layers(spec, http=http):
        if workdir is not None and isinstance(layer, Local):
            image, workdir = image.workdir(workdir), None
        image = _with_layer(image, layer)
    if workdir is not None:
        image = image.workdir(workdir)
    if _released_version() is None:
        image = image.add_local_dir(str(_PACKAGE), _IN_CONTAINER, ignore=list(_LEFT_OUT))
    return image


def locked_requirements(spec: ImageSpec) -> tuple[str, ...]:
    """What the lock of *spec* is resolved from: its own requirements and gpuserve's, those of HTTP included."""
    return (*spec.requirements(), *_own_requirements(spec, http="server"))


def _layers(spec: ImageSpec, *, http: Transport | None) -> list[Layer | Lock]:
    """The layers in their order, with what gpuserve needs among them."""
    layers: list[Layer | Lock] = list(spec.ordered_layers())
    if spec.lock is not None:
        place = next(n for n, layer in enumerate(layers) if isinstance(layer, Packages))
        layers = [layer for layer in layers if not isinstance(layer, Packages)]
        layers.insert(place, Lock(spec.lock))
        return layers
    own = _own_requirements(spec, http=http)
    # an environment that uv syncs has nothing of what was there before
    begin = max((n + 1 for n, layer in enumerate(layers) if isinstance(layer, Sync)), default=0)
    place = next((n for n in range(begin, len(layers)) if _takes_company(layers[n])), -1)
    company = layers[place] if place >= 0 else None
    if isinstance(company, Packages):
        layers[place] = company.model_copy(update={"requirements": (*company.requirements, *own)})
    elif own:
        first = next((n for n in range(begin, len(layers)) if not isinstance(layers[n], System)), len(layers))
        layers.insert(first, Packages(requirements=own))
    return layers


def _takes_company(layer: Layer | Lock) -> bool:
    """Whether gpuserve's own packages can be resolved in this layer: it uses the ordinary index, plainly."""
    return isinstance(layer, Packages) and layer.index is None and not layer.options and layer.gpu is None


def _base(spec: ImageSpec) -> modal.Image:
    base = spec.base
    credentials = modal_secret(base.registry_secret) if base.registry_secret is not None else None
    if base.kind == "debian":
        return modal.Image.debian_slim(python_version=base.python)
    if base.kind == "registry":
        return modal.Image.from_registry(base.reference, add_python=base.python, secret=credentials)
    context = base.context_dir if base.context_dir is not None else str(Path(base.reference).parent)
    return modal.Image.from_dockerfile(
        base.reference,
        context_dir=context,
        add_python=base.python,
        build_args=dict(base.build_args),
        secrets=_secrets(base.secrets),
        registry_secret=credentials,
    )


def _secrets(specs: tuple[SecretSpec, ...]) -> list[modal.Secret]:
    return [modal_secret(one) for one in specs]


def _with_layer(image: modal.Image, layer: Layer | Lock) -> modal.Image:
    match layer:
        case System():
            return image.apt_install(*layer.packages)
        case Lock():
            return image.uv_pip_install(
                requirements=[layer.path], extra_options="--require-hashes --no-deps", uv_version=_UV_VERSION
            )
        case Packages():
            return image.uv_pip_install(
                *layer.requirements,
                index_url=layer.index,
                extra_index_url=layer.extra_index,
                extra_options=layer.options,
                uv_version=_UV_VERSION,
                secrets=_secrets(layer.secrets),
                gpu=layer.gpu,
            )
        case Sync():
            return image.uv_sync(
                layer.project_dir,
                groups=list(layer.groups),
                extras=list(layer.extras),
                uv_version=_UV_VERSION,
                secrets=_secrets(layer.secrets),
            )
        case Shell():
            return image.run_commands(*layer.commands, gpu=layer.gpu, secrets=_secrets(layer.secrets))
        case Variables():
            return image.env(dict(layer.values))
        case Local():
            return _with_local(image, layer)


def _with_local(image: modal.Image, layer: Local) -> modal.Image:
    if layer.kind == "file":
        return image.add_local_file(layer.source, layer.target)
    if layer.kind == "dir":
        return image.add_local_dir(layer.source, layer.target, ignore=list(layer.ignore))
    return image.add_local_python_source(layer.source)


def _own_requirements(spec: ImageSpec, *, http: Transport | None) -> tuple[str, ...]:
    """What gpuserve needs in a container, without what the user pinned already."""
    pinned = {Requirement(text).name.lower() for text in spec.requirements()}
    needed = [name for name in _NEEDED[http] if name not in pinned]
    released = _released_version()
    own = [f"gpuserve=={released}"] if released is not None and "gpuserve" not in pinned else []
    return (*own, *(_pin(name) for name in needed))


def _pin(name: str) -> str:
    """The version of this machine, so that the image is the one that was tried here."""
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def _released_version() -> str | None:
    """The version to install from the index; ``None`` for a checkout, and in a container."""
    try:
        distribution = importlib.metadata.distribution("gpuserve")
    except importlib.metadata.PackageNotFoundError:
        return None
    address = distribution.read_text("direct_url.json")
    if address is not None and json.loads(address):
        return None
    return distribution.version
