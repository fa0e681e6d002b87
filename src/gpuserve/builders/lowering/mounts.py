"""The read-only mounts of those who load weights."""

from __future__ import annotations

from typing import Any

import modal

from gpuserve.specs.weights import WeightsDeclaration

__all__ = ["weights_volumes"]


def weights_volumes(*caches: WeightsDeclaration) -> dict[str, Any]:
    """The read-only mounts of those who load the weights: ``@app.function(volumes=weights_volumes(cache))``.

    Examples:
        >>> import gpuserve
        >>> cache = gpuserve.VolumeWeightsCache(source=gpuserve.HubSource("org/model", revision="0" * 40))
        >>> list(gpuserve.weights_volumes(cache))
        ['/gpuserve-weights/gpuserve-weights']
    """
    return {
        cache.mounted_at: modal.Volume.from_name(cache.volume, create_if_missing=True).with_mount_options(
            read_only=True
        )
        for cache in caches
    }
