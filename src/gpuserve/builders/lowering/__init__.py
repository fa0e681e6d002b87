"""From declarations to Modal: the only place that declares to modal."""

from __future__ import annotations

from gpuserve.builders.lowering.image import modal_image
from gpuserve.builders.lowering.secret import modal_secret
from gpuserve.builders.lowering.server import register
from gpuserve.builders.lowering.weights import register_weights, weights_volumes

__all__ = ["modal_image", "modal_secret", "register", "register_weights", "weights_volumes"]
