"""What a served class's declaration is to Modal's decorators, as far as they are alike."""

from __future__ import annotations

import os
from typing import Any

from gpuserve.builders.lowering.image import modal_image
from gpuserve.builders.lowering.mounts import weights_volumes
from gpuserve.builders.lowering.secret import modal_secret
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.server import ServerDeclaration

__all__ = ["MAX_INPUTS", "busy_inputs", "container_arguments", "most_inputs"]

# Source: Modal's guide to input concurrency: 1,000 inputs a container at most.
MAX_INPUTS = 1000
_HEALTH_CHECKS = 8
_FROM_HERE = ("GPUSERVE_TRY_PAGE",)


def container_arguments(declaration: ServerDeclaration, image: ImageSpec) -> dict[str, Any]:
    """The arguments that ``app.cls`` and ``app.server`` share."""
    http, gpu = declaration.http, declaration.gpu
    return {
        "image": modal_image(image, http=http.transport if http is not None else None),
        "gpu": list(gpu) if isinstance(gpu, tuple) else gpu,
        "secrets": [modal_secret(one) if isinstance(one, SecretSpec) else one for one in declaration.all_secrets],
        # said by `gpuserve local serve`: its servers bring a page to try them from
        "env": {**declaration.env, **{name: os.environ[name] for name in _FROM_HERE if name in os.environ}} or None,
        "volumes": {**weights_volumes(*declaration.caches), **declaration.volumes},
        "min_containers": declaration.scaling.min_containers or None,
        "max_containers": declaration.scaling.max_containers,
        "buffer_containers": declaration.scaling.buffer_containers or None,
        "scaledown_window": declaration.scaling.scaledown_window,
        "startup_timeout": declaration.startup_timeout_s,
        "cpu": declaration.cpu,
        "memory": declaration.memory_mib,
        "ephemeral_disk": declaration.ephemeral_disk_mib,
        "cloud": declaration.cloud,
        "proxy": declaration.proxy,
        "nonpreemptible": declaration.nonpreemptible,
        "enable_memory_snapshot": declaration.memory_snapshot,
    }


def most_inputs(declaration: ServerDeclaration) -> int:
    """Requests that one container may hold: those that wait, a batch under way, and health checks."""
    return declaration.batching.max_queue + declaration.batching.max_batch_size + _HEALTH_CHECKS


def busy_inputs(declaration: ServerDeclaration) -> int:
    """Requests that keep one container busy: a batch that runs and one that waits."""
    return min(2 * declaration.batching.max_batch_size, most_inputs(declaration), MAX_INPUTS)
