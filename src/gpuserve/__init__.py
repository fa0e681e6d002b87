"""gpuserve: builders for GPU work on Modal, and a local engine that runs any Modal app offline.

``import gpuserve`` loads nothing heavy: no torch, no engine, no command line; each name is loaded
when it is first used, because the same import runs at every cold start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuserve.builders.batch import BatchMapper as BatchMapper
    from gpuserve.builders.batch import batch_status as batch_status
    from gpuserve.builders.batched import BatchedMethod as BatchedMethod
    from gpuserve.builders.batched import batched as batched
    from gpuserve.builders.detached import DetachedRun as DetachedRun
    from gpuserve.builders.finetune import FineTuneJob as FineTuneJob
    from gpuserve.builders.job import ScheduledJob as ScheduledJob
    from gpuserve.builders.lowering import modal_image as modal_image
    from gpuserve.builders.lowering import modal_secret as modal_secret
    from gpuserve.builders.lowering import register as register
    from gpuserve.builders.lowering import register_weights as register_weights
    from gpuserve.builders.lowering import weights_volumes as weights_volumes
    from gpuserve.builders.lowering.costs import hourly_cost as hourly_cost
    from gpuserve.builders.lowering.mapper import register_mapper as register_mapper
    from gpuserve.builders.lowering.prices import live_prices as live_prices
    from gpuserve.builders.server import WarmModelServer as WarmModelServer
    from gpuserve.builders.streaming import StreamingMethod as StreamingMethod
    from gpuserve.builders.streaming import streaming as streaming
    from gpuserve.builders.weights import VolumeWeightsCache as VolumeWeightsCache
    from gpuserve.exceptions import AnswerError as AnswerError
    from gpuserve.exceptions import BadInputError as BadInputError
    from gpuserve.exceptions import BatchBusyError as BatchBusyError
    from gpuserve.exceptions import BatchError as BatchError
    from gpuserve.exceptions import BatchRunError as BatchRunError
    from gpuserve.exceptions import ChecksumMismatchError as ChecksumMismatchError
    from gpuserve.exceptions import DatasetError as DatasetError
    from gpuserve.exceptions import DeadlineError as DeadlineError
    from gpuserve.exceptions import DeclarationError as DeclarationError
    from gpuserve.exceptions import DiskFullError as DiskFullError
    from gpuserve.exceptions import DivergedError as DivergedError
    from gpuserve.exceptions import EngineError as EngineError
    from gpuserve.exceptions import FencedError as FencedError
    from gpuserve.exceptions import GatedSourceError as GatedSourceError
    from gpuserve.exceptions import GpuserveError as GpuserveError
    from gpuserve.exceptions import JobError as JobError
    from gpuserve.exceptions import LeaseLostError as LeaseLostError
    from gpuserve.exceptions import OutputMismatchError as OutputMismatchError
    from gpuserve.exceptions import PricesError as PricesError
    from gpuserve.exceptions import QueueFullError as QueueFullError
    from gpuserve.exceptions import RegistrationError as RegistrationError
    from gpuserve.exceptions import RequestError as RequestError
    from gpuserve.exceptions import SecretError as SecretError
    from gpuserve.exceptions import StateError as StateError
    from gpuserve.exceptions import TrainingError as TrainingError
    from gpuserve.exceptions import UnsafeWeightsError as UnsafeWeightsError
    from gpuserve.exceptions import WeightsCorruptError as WeightsCorruptError
    from gpuserve.exceptions import WeightsError as WeightsError
    from gpuserve.exceptions import WeightsNotFoundError as WeightsNotFoundError
    from gpuserve.exceptions import WeightsSourceError as WeightsSourceError
    from gpuserve.prices import Prices as Prices
    from gpuserve.runtime.batch.events import BatchReport as BatchReport
    from gpuserve.runtime.batch.events import BatchStatus as BatchStatus
    from gpuserve.runtime.jobs.plan import JobOutcome as JobOutcome
    from gpuserve.runtime.jobs.plan import JobRun as JobRun
    from gpuserve.runtime.secrets import require_keys as require_keys
    from gpuserve.runtime.state.counter import Counter as Counter
    from gpuserve.runtime.state.progress import Progress as Progress
    from gpuserve.runtime.state.progress import ProgressReport as ProgressReport
    from gpuserve.runtime.state.rate_limiter import RateLimiter as RateLimiter
    from gpuserve.runtime.state.seen_set import SeenSet as SeenSet
    from gpuserve.runtime.training.report import TrainingReport as TrainingReport
    from gpuserve.specs.batch import Csv as Csv
    from gpuserve.specs.batch import HfDataset as HfDataset
    from gpuserve.specs.batch import Items as Items
    from gpuserve.specs.batch import Jsonl as Jsonl
    from gpuserve.specs.batch import MapBatching as MapBatching
    from gpuserve.specs.batch import MapRetries as MapRetries
    from gpuserve.specs.batch import Parquet as Parquet
    from gpuserve.specs.batch import Shards as Shards
    from gpuserve.specs.batching import Batching as Batching
    from gpuserve.specs.budget import Budget as Budget
    from gpuserve.specs.dataset import FileDataset as FileDataset
    from gpuserve.specs.dataset import HubDataset as HubDataset
    from gpuserve.specs.dataset import VolumeDataset as VolumeDataset
    from gpuserve.specs.gpu import Gpu as Gpu
    from gpuserve.specs.http import Http as Http
    from gpuserve.specs.image import ImageSpec as ImageSpec
    from gpuserve.specs.scaling import Scaling as Scaling
    from gpuserve.specs.schedule import JobAlerts as JobAlerts
    from gpuserve.specs.schedule import Schedule as Schedule
    from gpuserve.specs.secret import SecretSpec as SecretSpec
    from gpuserve.specs.source import AdapterSource as AdapterSource
    from gpuserve.specs.source import AliasSource as AliasSource
    from gpuserve.specs.source import FolderSource as FolderSource
    from gpuserve.specs.source import HubSource as HubSource
    from gpuserve.specs.source import VolumeSource as VolumeSource
    from gpuserve.specs.telemetry import Alerts as Alerts
    from gpuserve.specs.telemetry import Telemetry as Telemetry
    from gpuserve.specs.tuning import Gate as Gate
    from gpuserve.specs.tuning import Lora as Lora
    from gpuserve.specs.tuning import MlflowTracking as MlflowTracking
    from gpuserve.specs.tuning import WandbTracking as WandbTracking
    from gpuserve.specs.variant import Variant as Variant
    from gpuserve.tools.batch.progress import BatchProgress as BatchProgress
    from gpuserve.tools.batch.report import batch_report_html as batch_report_html
    from gpuserve.tools.batch.report import write_batch_report as write_batch_report

__version__ = "0.1.0"

_HOMES = {
    "AdapterSource": "gpuserve.specs.source",
    "Alerts": "gpuserve.specs.telemetry",
    "AliasSource": "gpuserve.specs.source",
    "AnswerError": "gpuserve.exceptions",
    "BadInputError": "gpuserve.exceptions",
    "BatchBusyError": "gpuserve.exceptions",
    "BatchError": "gpuserve.exceptions",
    "BatchMapper": "gpuserve.builders.batch",
    "BatchProgress": "gpuserve.tools.batch.progress",
    "BatchReport": "gpuserve.runtime.batch.events",
    "BatchRunError": "gpuserve.exceptions",
    "BatchStatus": "gpuserve.runtime.batch.events",
    "BatchedMethod": "gpuserve.builders.batched",
    "Batching": "gpuserve.specs.batching",
    "Budget": "gpuserve.specs.budget",
    "ChecksumMismatchError": "gpuserve.exceptions",
    "Counter": "gpuserve.runtime.state.counter",
    "Csv": "gpuserve.specs.batch",
    "DatasetError": "gpuserve.exceptions",
    "DeadlineError": "gpuserve.exceptions",
    "DeclarationError": "gpuserve.exceptions",
    "DetachedRun": "gpuserve.builders.detached",
    "DiskFullError": "gpuserve.exceptions",
    "DivergedError": "gpuserve.exceptions",
    "EngineError": "gpuserve.exceptions",
    "FencedError": "gpuserve.exceptions",
    "FileDataset": "gpuserve.specs.dataset",
    "FineTuneJob": "gpuserve.builders.finetune",
    "FolderSource": "gpuserve.specs.source",
    "Gate": "gpuserve.specs.tuning",
    "GatedSourceError": "gpuserve.exceptions",
    "Gpu": "gpuserve.specs.gpu",
    "GpuserveError": "gpuserve.exceptions",
    "HfDataset": "gpuserve.specs.batch",
    "Http": "gpuserve.specs.http",
    "HubDataset": "gpuserve.specs.dataset",
    "HubSource": "gpuserve.specs.source",
    "ImageSpec": "gpuserve.specs.image",
    "Items": "gpuserve.specs.batch",
    "JobAlerts": "gpuserve.specs.schedule",
    "JobError": "gpuserve.exceptions",
    "JobOutcome": "gpuserve.runtime.jobs.plan",
    "JobRun": "gpuserve.runtime.jobs.plan",
    "Jsonl": "gpuserve.specs.batch",
    "LeaseLostError": "gpuserve.exceptions",
    "Lora": "gpuserve.specs.tuning",
    "MapBatching": "gpuserve.specs.batch",
    "MapRetries": "gpuserve.specs.batch",
    "MlflowTracking": "gpuserve.specs.tuning",
    "OutputMismatchError": "gpuserve.exceptions",
    "Parquet": "gpuserve.specs.batch",
    "Prices": "gpuserve.prices",
    "PricesError": "gpuserve.exceptions",
    "Progress": "gpuserve.runtime.state.progress",
    "ProgressReport": "gpuserve.runtime.state.progress",
    "QueueFullError": "gpuserve.exceptions",
    "RateLimiter": "gpuserve.runtime.state.rate_limiter",
    "RegistrationError": "gpuserve.exceptions",
    "RequestError": "gpuserve.exceptions",
    "Scaling": "gpuserve.specs.scaling",
    "Schedule": "gpuserve.specs.schedule",
    "ScheduledJob": "gpuserve.builders.job",
    "SecretError": "gpuserve.exceptions",
    "SecretSpec": "gpuserve.specs.secret",
    "SeenSet": "gpuserve.runtime.state.seen_set",
    "Shards": "gpuserve.specs.batch",
    "StateError": "gpuserve.exceptions",
    "StreamingMethod": "gpuserve.builders.streaming",
    "Telemetry": "gpuserve.specs.telemetry",
    "TrainingError": "gpuserve.exceptions",
    "TrainingReport": "gpuserve.runtime.training.report",
    "UnsafeWeightsError": "gpuserve.exceptions",
    "Variant": "gpuserve.specs.variant",
    "VolumeDataset": "gpuserve.specs.dataset",
    "VolumeSource": "gpuserve.specs.source",
    "VolumeWeightsCache": "gpuserve.builders.weights",
    "WandbTracking": "gpuserve.specs.tuning",
    "WarmModelServer": "gpuserve.builders.server",
    "WeightsCorruptError": "gpuserve.exceptions",
    "WeightsError": "gpuserve.exceptions",
    "WeightsNotFoundError": "gpuserve.exceptions",
    "WeightsSourceError": "gpuserve.exceptions",
    "batch_report_html": "gpuserve.tools.batch.report",
    "batch_status": "gpuserve.builders.batch",
    "batched": "gpuserve.builders.batched",
    "hourly_cost": "gpuserve.builders.lowering.costs",
    "live_prices": "gpuserve.builders.lowering.prices",
    "modal_image": "gpuserve.builders.lowering",
    "modal_secret": "gpuserve.builders.lowering",
    "register": "gpuserve.builders.lowering",
    "register_mapper": "gpuserve.builders.lowering.mapper",
    "register_weights": "gpuserve.builders.lowering",
    "require_keys": "gpuserve.runtime.secrets",
    "streaming": "gpuserve.builders.streaming",
    "weights_volumes": "gpuserve.builders.lowering",
    "write_batch_report": "gpuserve.tools.batch.report",
}

__all__ = [
    "AdapterSource",
    "Alerts",
    "AliasSource",
    "AnswerError",
    "BadInputError",
    "BatchBusyError",
    "BatchError",
    "BatchMapper",
    "BatchProgress",
    "BatchReport",
    "BatchRunError",
    "BatchStatus",
    "BatchedMethod",
    "Batching",
    "Budget",
    "ChecksumMismatchError",
    "Counter",
    "Csv",
    "DatasetError",
    "DeadlineError",
    "DeclarationError",
    "DetachedRun",
    "DiskFullError",
    "DivergedError",
    "EngineError",
    "FencedError",
    "FileDataset",
    "FineTuneJob",
    "FolderSource",
    "Gate",
    "GatedSourceError",
    "Gpu",
    "GpuserveError",
    "HfDataset",
    "Http",
    "HubDataset",
    "HubSource",
    "ImageSpec",
    "Items",
    "JobAlerts",
    "JobError",
    "JobOutcome",
    "JobRun",
    "Jsonl",
    "LeaseLostError",
    "Lora",
    "MapBatching",
    "MapRetries",
    "MlflowTracking",
    "OutputMismatchError",
    "Parquet",
    "Prices",
    "PricesError",
    "Progress",
    "ProgressReport",
    "QueueFullError",
    "RateLimiter",
    "RegistrationError",
    "RequestError",
    "Scaling",
    "Schedule",
    "ScheduledJob",
    "SecretError",
    "SecretSpec",
    "SeenSet",
    "Shards",
    "StateError",
    "StreamingMethod",
    "Telemetry",
    "TrainingError",
    "TrainingReport",
    "UnsafeWeightsError",
    "Variant",
    "VolumeDataset",
    "VolumeSource",
    "VolumeWeightsCache",
    "WandbTracking",
    "WarmModelServer",
    "WeightsCorruptError",
    "WeightsError",
    "WeightsNotFoundError",
    "WeightsSourceError",
    "__version__",
    "batch_report_html",
    "batch_status",
    "batched",
    "hourly_cost",
    "live_prices",
    "modal_image",
    "modal_secret",
    "register",
    "register_mapper",
    "register_weights",
    "require_keys",
    "streaming",
    "weights_volumes",
    "write_batch_report",
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
