"""gpuserve: builders for GPU work on Modal, and a local engine that runs any Modal app offline.

``import gpuserve`` loads nothing heavy: no torch, no engine, no command line; each name is loaded
when it is first used, because the same import runs at every cold start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuserve.builders.batched import BatchedMethod as BatchedMethod
    from gpuserve.builders.batched import batched as batched
    from gpuserve.builders.lowering import register as register
    from gpuserve.builders.server import WarmModelServer as WarmModelServer
    from gpuserve.builders.streaming import StreamingMethod as StreamingMethod
    from gpuserve.builders.streaming import streaming as streaming
    from gpuserve.exceptions import BatchError as BatchError
    from gpuserve.exceptions import DeadlineError as DeadlineError
    from gpuserve.exceptions import DeclarationError as DeclarationError
    from gpuserve.exceptions import EngineError as EngineError
    from gpuserve.exceptions import GpuserveError as GpuserveError
    from gpuserve.exceptions import QueueFullError as QueueFullError
    from gpuserve.exceptions import RegistrationError as RegistrationError
    from gpuserve.exceptions import RequestError as RequestError
    from gpuserve.exceptions import StateError as StateError
    from gpuserve.specs.batching import Batching as Batching
    from gpuserve.specs.budget import Budget as Budget
    from gpuserve.specs.gpu import Gpu as Gpu
    from gpuserve.specs.http import Http as Http
    from gpuserve.specs.image import ImageSpec as ImageSpec
    from gpuserve.specs.scaling import Scaling as Scaling
    from gpuserve.specs.secret import SecretSpec as SecretSpec

__version__ = "0.1.0"

_HOMES = {
    "BatchError": "gpuserve.exceptions",
    "BatchedMethod": "gpuserve.builders.batched",
    "Batching": "gpuserve.specs.batching",
    "Budget": "gpuserve.specs.budget",
    "DeadlineError": "gpuserve.exceptions",
    "DeclarationError": "gpuserve.exceptions",
    "EngineError": "gpuserve.exceptions",
    "Gpu": "gpuserve.specs.gpu",
    "GpuserveError": "gpuserve.exceptions",
    "Http": "gpuserve.specs.http",
    "ImageSpec": "gpuserve.specs.image",
    "QueueFullError": "gpuserve.exceptions",
    "RegistrationError": "gpuserve.exceptions",
    "RequestError": "gpuserve.exceptions",
    "Scaling": "gpuserve.specs.scaling",
    "SecretSpec": "gpuserve.specs.secret",
    "StateError": "gpuserve.exceptions",
    "WarmModelServer": "gpuserve.builders.server",
    "StreamingMethod": "gpuserve.builders.streaming",
    "batched": "gpuserve.builders.batched",
    "register": "gpuserve.builders.lowering",
    "streaming": "gpuserve.builders.streaming",
}

__all__ = [
    "BatchError",
    "BatchedMethod",
    "Batching",
    "Budget",
    "DeadlineError",
    "DeclarationError",
    "EngineError",
    "Gpu",
    "GpuserveError",
    "Http",
    "ImageSpec",
    "QueueFullError",
    "RegistrationError",
    "RequestError",
    "Scaling",
    "SecretSpec",
    "StateError",
    "StreamingMethod",
    "WarmModelServer",
    "__version__",
    "batched",
    "register",
    "streaming",
]


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gpuserve' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
