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
    from gpuserve.builders.lowering import modal_image as modal_image
    from gpuserve.builders.lowering import modal_secret as modal_secret
    from gpuserve.builders.lowering import register as register
    from gpuserve.builders.lowering import register_weights as register_weights
    from gpuserve.builders.lowering import weights_volumes as weights_volumes
    from gpuserve.builders.server import WarmModelServer as WarmModelServer
    from gpuserve.builders.streaming import StreamingMethod as StreamingMethod
    from gpuserve.builders.streaming import streaming as streaming
    from gpuserve.builders.weights import VolumeWeightsCache as VolumeWeightsCache
    from gpuserve.exceptions import BatchError as BatchError
    from gpuserve.exceptions import ChecksumMismatchError as ChecksumMismatchError
    from gpuserve.exceptions import DeadlineError as DeadlineError
    from gpuserve.exceptions import DeclarationError as DeclarationError
    from gpuserve.exceptions import DiskFullError as DiskFullError
    from gpuserve.exceptions import EngineError as EngineError
    from gpuserve.exceptions import GatedSourceError as GatedSourceError
    from gpuserve.exceptions import GpuserveError as GpuserveError
    from gpuserve.exceptions import QueueFullError as QueueFullError
    from gpuserve.exceptions import RegistrationError as RegistrationError
    from gpuserve.exceptions import RequestError as RequestError
    from gpuserve.exceptions import SecretError as SecretError
    from gpuserve.exceptions import StateError as StateError
    from gpuserve.exceptions import UnsafeWeightsError as UnsafeWeightsError
    from gpuserve.exceptions import WeightsCorruptError as WeightsCorruptError
    from gpuserve.exceptions import WeightsError as WeightsError
    from gpuserve.exceptions import WeightsNotFoundError as WeightsNotFoundError
    from gpuserve.exceptions import WeightsSourceError as WeightsSourceError
    from gpuserve.runtime.secrets import require_keys as require_keys
    from gpuserve.specs.batching import Batching as Batching
    from gpuserve.specs.budget import Budget as Budget
    from gpuserve.specs.gpu import Gpu as Gpu
    from gpuserve.specs.http import Http as Http
    from gpuserve.specs.image import ImageSpec as ImageSpec
    from gpuserve.specs.scaling import Scaling as Scaling
    from gpuserve.specs.secret import SecretSpec as SecretSpec
    from gpuserve.specs.source import AdapterSource as AdapterSource
    from gpuserve.specs.source import FolderSource as FolderSource
    from gpuserve.specs.source import HubSource as HubSource
    from gpuserve.specs.source import VolumeSource as VolumeSource
    from gpuserve.specs.telemetry import Alerts as Alerts
    from gpuserve.specs.telemetry import Telemetry as Telemetry
    from gpuserve.specs.variant import Variant as Variant

__version__ = "0.1.0"

_HOMES = {
    "AdapterSource": "gpuserve.specs.source",
    "Alerts": "gpuserve.specs.telemetry",
    "BatchError": "gpuserve.exceptions",
    "BatchedMethod": "gpuserve.builders.batched",
    "Batching": "gpuserve.specs.batching",
    "Budget": "gpuserve.specs.budget",
    "ChecksumMismatchError": "gpuserve.exceptions",
    "DeadlineError": "gpuserve.exceptions",
    "DeclarationError": "gpuserve.exceptions",
    "DiskFullError": "gpuserve.exceptions",
    "EngineError": "gpuserve.exceptions",
    "FolderSource": "gpuserve.specs.source",
    "GatedSourceError": "gpuserve.exceptions",
    "Gpu": "gpuserve.specs.gpu",
    "GpuserveError": "gpuserve.exceptions",
    "Http": "gpuserve.specs.http",
    "HubSource": "gpuserve.specs.source",
    "ImageSpec": "gpuserve.specs.image",
    "QueueFullError": "gpuserve.exceptions",
    "RegistrationError": "gpuserve.exceptions",
    "RequestError": "gpuserve.exceptions",
    "Scaling": "gpuserve.specs.scaling",
    "SecretError": "gpuserve.exceptions",
    "SecretSpec": "gpuserve.specs.secret",
    "StateError": "gpuserve.exceptions",
    "StreamingMethod": "gpuserve.builders.streaming",
    "Telemetry": "gpuserve.specs.telemetry",
    "UnsafeWeightsError": "gpuserve.exceptions",
    "Variant": "gpuserve.specs.variant",
    "VolumeSource": "gpuserve.specs.source",
    "VolumeWeightsCache": "gpuserve.builders.weights",
    "WarmModelServer": "gpuserve.builders.server",
    "WeightsCorruptError": "gpuserve.exceptions",
    "WeightsError": "gpuserve.exceptions",
    "WeightsNotFoundError": "gpuserve.exceptions",
    "WeightsSourceError": "gpuserve.exceptions",
    "batched": "gpuserve.builders.batched",
    "modal_image": "gpuserve.builders.lowering",
    "modal_secret": "gpuserve.builders.lowering",
    "register": "gpuserve.builders.lowering",
    "register_weights": "gpuserve.builders.lowering",
    "require_keys": "gpuserve.runtime.secrets",
    "streaming": "gpuserve.builders.streaming",
    "weights_volumes": "gpuserve.builders.lowering",
}

__all__ = [
    "AdapterSource",
    "Alerts",
    "BatchError",
    "BatchedMethod",
    "Batching",
    "Budget",
    "ChecksumMismatchError",
    "DeadlineError",
    "DeclarationError",
    "DiskFullError",
    "EngineError",
    "FolderSource",
    "GatedSourceError",
    "Gpu",
    "GpuserveError",
    "Http",
    "HubSource",
    "ImageSpec",
    "QueueFullError",
    "RegistrationError",
    "RequestError",
    "Scaling",
    "SecretError",
    "SecretSpec",
    "StateError",
    "StreamingMethod",
    "Telemetry",
    "UnsafeWeightsError",
    "Variant",
    "VolumeSource",
    "VolumeWeightsCache",
    "WarmModelServer",
    "WeightsCorruptError",
    "WeightsError",
    "WeightsNotFoundError",
    "WeightsSourceError",
    "__version__",
    "batched",
    "modal_image",
    "modal_secret",
    "register",
    "register_weights",
    "require_keys",
    "streaming",
    "weights_volumes",
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
