"""A weights cache, declared to modal: the function that fetches, and the mount of those who read."""

from __future__ import annotations

import importlib.metadata
import weakref
from collections.abc import Callable
from typing import Any

import modal

from gpuserve.builders.lowering.costs import note_cost
from gpuserve.builders.lowering.image import modal_image
from gpuserve.builders.lowering.mounts import weights_volumes
from gpuserve.builders.lowering.secret import modal_secret
from gpuserve.exceptions import RegistrationError
from gpuserve.runtime.weights import functions
from gpuserve.runtime.weights.fetch import FetchReport
from gpuserve.specs.budget import HourlyCost
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.source import AdapterSource, VolumeSource
from gpuserve.specs.weights import WeightsDeclaration

__all__ = ["declare_weights_function", "register_weights", "weights_volumes"]

# What fetches where this machine has no huggingface_hub of its own.
_HUB_VERSION = "2.4.0"
_REGISTERED: weakref.WeakKeyDictionary[modal.App, dict[str, WeightsDeclaration]] = weakref.WeakKeyDictionary()


def register_weights(
    app: modal.App, cache: WeightsDeclaration, *, name: str = "fetch_weights", **modal_arguments: Any
) -> modal.Function[[bool], FetchReport, FetchReport]:
    """Add the function that fetches the cache's weights into its volume, one container at most.

    Args:
        app: The app that it belongs to.
        cache: The `VolumeWeightsCache`.
        name: The function's name; each cache of an app needs one of its own.
        modal_arguments: Handed on to ``modal.App.function`` as they are.

    Returns:
        The function: ``fetch.remote()`` answers with what was fetched, ``fetch.remote(refresh=True)`` asks
        anew what a branch stands for.

    Raises:
        RegistrationError: If the app has another cache under that name.

    Examples:
        >>> import modal, gpuserve
        >>> app = modal.App("weights")
        >>> weights = gpuserve.VolumeWeightsCache(source=gpuserve.HubSource("org/model", revision="0" * 40))
        >>> fetch = gpuserve.register_weights(app, weights)
        >>> isinstance(fetch, modal.Function)
        True
    """
    taken = _REGISTERED.setdefault(app, {})
    if taken.setdefault(name, cache) != cache:
        raise RegistrationError(
            f"the app has another cache under {name} already; give each cache a name: name='fetch_…'"
        )
    note_cost(app, name, HourlyCost.of(cpu=cache.cpu, memory_mib=cache.memory_mib))
    function: modal.Function[[bool], FetchReport, FetchReport] = declare_weights_function(
        app, cache, functions.fetch_weights, name=name, **modal_arguments
    )
    return function


def declare_weights_function(
    app: modal.App, cache: WeightsDeclaration, function: Callable[..., Any], *, name: str, **modal_arguments: Any
) -> Any:
    """One of the functions of `gpuserve.runtime.weights.functions`, on *app*, for *cache*."""
    origin = cache.source.origin if isinstance(cache.source, AdapterSource) else cache.source
    volumes: dict[str, modal.Volume] = {cache.mounted_at: modal.Volume.from_name(cache.volume, create_if_missing=True)}
    if isinstance(origin, VolumeSource):
        volumes[origin.mount_path] = modal.Volume.from_name(origin.volume).with_mount_options(read_only=True)
    told = WeightsDeclaration(
        source=cache.source, volume=cache.volume, mount_path=cache.mount_path, workers=cache.workers
    )
    arguments: dict[str, Any] = {
        "name": name,
        "image": modal_image(cache.image if cache.image is not None else _image()),
        "volumes": volumes,
        "secrets": [modal_secret(cache.token)] if cache.token is not None else [],
        "env": {**cache.env, functions.CACHE: told.model_dump_json()},
        "max_containers": 1,
        "timeout": cache.timeout_s,
        "cpu": cache.cpu,
        "memory": cache.memory_mib,
        # gpuserve is in the image already
        "include_source": False,
    }
    return app.function(**{**arguments, **modal_arguments})(function)


def _image() -> ImageSpec:
    try:
        version = importlib.metadata.version("huggingface_hub")
    except importlib.metadata.PackageNotFoundError:
        version = _HUB_VERSION
    return ImageSpec.debian().pip(f"huggingface_hub=={version}")
