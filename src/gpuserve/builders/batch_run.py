"""From a declaration to a driver: the source, the target and the folder that it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpuserve.exceptions import DeclarationError
from gpuserve.runtime.batch.drive import Driver
from gpuserve.runtime.batch.events import OnEvent
from gpuserve.runtime.batch.folder import OutputFolder
from gpuserve.runtime.batch.plan import cost_function
from gpuserve.runtime.batch.rows import Fields, Source
from gpuserve.runtime.batch.settings import Settings
from gpuserve.runtime.batch.shards import writer_of
from gpuserve.runtime.batch.sources.iterables import AsyncItemsSource, DatasetSource, ItemsSource
from gpuserve.runtime.batch.sources.text import CsvSource, JsonlSource
from gpuserve.runtime.batch.status import require_dead_letters, retried
from gpuserve.runtime.batch.target import FunctionTarget, Target
from gpuserve.runtime.batch.trials import RetryPolicy
from gpuserve.runtime.batch.volumes import VolumeFolder, mounted_at
from gpuserve.specs.batch import BatchDeclaration, Csv, HfDataset, Items, Jsonl, Parquet

__all__ = ["driver_for", "retry_driver_for", "source_for", "target_for"]


def source_for(declared: Any) -> Source:
    """The source that is declared, ready to be opened."""
    fields = Fields(declared.id_field, declared.input_field)
    if isinstance(declared, Jsonl):
        return JsonlSource(declared.paths, fields, declared.encoding)
    if isinstance(declared, Csv):
        return CsvSource(declared.paths, fields, declared.encoding, declared.delimiter)
    if isinstance(declared, Parquet):
        from gpuserve.runtime.batch.sources.parquet import ParquetSource

        return ParquetSource(declared.paths, fields)
    if isinstance(declared, HfDataset):
        return DatasetSource(
            _dataset(declared), fields, declared.dataset if isinstance(declared.dataset, str) else "dataset"
        )
    if isinstance(declared, Items):
        made = declared.items
        asynchronous = hasattr(made, "__aiter__")
        if callable(made) and not hasattr(made, "__iter__"):
            asynchronous = _is_async(made)
        return (AsyncItemsSource if asynchronous else ItemsSource)(made, fields, declared.name)
    raise DeclarationError("BatchMapper", (f"source got {declared!r}; write Jsonl, Csv, Parquet, HfDataset or Items",))


def _is_async(function: Callable[[], Any]) -> bool:
    import inspect

    return inspect.isasyncgenfunction(function)


def _dataset(declared: HfDataset) -> Any:
    if not isinstance(declared.dataset, str):
        return declared.dataset[declared.split] if declared.split is not None else declared.dataset
    try:
        import datasets
    except ImportError:
        raise DeclarationError("HfDataset", ("it needs datasets: pip install datasets",)) from None
    if Path(declared.dataset).is_dir() and list(Path(declared.dataset).glob("*.json")):
        found = datasets.load_from_disk(declared.dataset)
        return found[declared.split] if declared.split is not None else found
    return datasets.load_dataset(declared.dataset, split=declared.split or "train", revision=declared.revision)


def target_for(declaration: BatchDeclaration) -> Target:
    """The target that is declared."""
    target = declaration.target
    if callable(target) and type(target).__module__.partition(".")[0] not in {"modal", "gpuserve"}:
        return FunctionTarget(target, f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}")
    from gpuserve.builders.lowering.batch import modal_target

    return modal_target(declaration)


def driver_for(declaration: BatchDeclaration, on_event: OnEvent, *, takeover: bool = False) -> Driver:
    """Take the output folder, and make the driver of its run.

    Raises:
        OutputMismatchError: If the folder belongs to another run.
        BatchBusyError: If another driver is at work on it.
    """
    folder = OutputFolder(_path_here(declaration))
    return _driver(declaration, source_for(declaration.source), folder, on_event, takeover=takeover)


def _path_here(declaration: BatchDeclaration) -> Path:
    """Where a driver of this process writes."""
    volume = declaration.output.volume
    if volume is not None:
        fault = (
            f"output is in the volume {volume}, which only a driver in Modal sees; write "
            f"@gpuserve.register_mapper(app) above the class, and detach=True, or --detach, where you run it"
        )
        raise DeclarationError("BatchMapper", (fault,))
    return Path(declaration.output.path)


def detached_driver_for(declaration: BatchDeclaration, retry: int | None = None) -> Driver:
    """The driver of a run whose output is in a volume that is mounted here.

    Args:
        declaration: What to run.
        retry: Run what was given up instead, into the folder of that number.

    Raises:
        OutputMismatchError: If the folder belongs to another run.
        BatchRunError: If there is nothing to be retried.
    """
    from gpuserve.runtime.ports import LeaseEntries, ModalVolume, SharedFence

    volume = declaration.output.volume or ""

    def folder_at(path: str) -> OutputFolder:
        fence = SharedFence(LeaseEntries("gpuserve-batch-drivers"), f"{volume}/{path}")
        return VolumeFolder(Path(mounted_at(volume)) / path, ModalVolume(volume), fence)

    folder = folder_at(declaration.output.path)
    source = source_for(declaration.source) if retry is None else _given_up(folder)
    if retry is not None:
        folder = folder_at(f"{declaration.output.path}/{retried(retry)}")
    # Modal runs one driver at a time; another one that seems alive is this one's killed attempt
    return _driver(declaration, source, folder, lambda _event: None, takeover=True)


def _driver(
    declaration: BatchDeclaration,
    source: Source,
    folder: OutputFolder,
    on_event: OnEvent,
    *,
    takeover: bool = False,
) -> Driver:
    batching, retries, target = declaration.batching, declaration.retries, target_for(declaration)
    writer = writer_of(declaration.output.format)
    identity = {
        "name": declaration.name,
        "source": source.identity(),
        "target": target.name,
        "window": batching.window,
        "format": declaration.output.format,
    }
    settings = Settings(
        window=batching.window,
        max_items=batching.max_items,
        max_cost=batching.max_cost,
        padded=batching.padded,
        cost=cost_function(batching.cost),
        max_outstanding=batching.max_outstanding,
        max_open=batching.max_open,
        retries=RetryPolicy(
            retries.max_attempts, retries.initial_delay_s, retries.backoff_coefficient, retries.max_delay_s
        ),
        stop_on_bad_input=declaration.on_bad_input == "stop",
        max_usd=declaration.max_usd,
        deadline_s=declaration.deadline_s,
        patience_s=retries.patience_s,
        has_ids=getattr(declaration.source, "id_field", None) is not None,
    )
    if declaration.usd_per_container_hour is not None:
        target.usd_per_container_hour = declaration.usd_per_container_hour
    folder.take(json.loads(json.dumps(identity)), takeover=takeover)
    try:
        return Driver(settings, source, target, folder, writer, on_event)
    except BaseException:
        folder.leave()
        raise


def retry_driver_for(declaration: BatchDeclaration, on_event: OnEvent) -> Driver:
    """A driver over the dead letters of a finished run, into a folder of its own below it.

    Raises:
        BatchRunError: If the run is not finished, or nothing failed.
    """
    root = _path_here(declaration)
    source = _given_up(OutputFolder(root))
    number = len(list(root.glob("retried-*/manifest.json")))
    return _driver(declaration, source, OutputFolder(root / retried(number)), on_event)


def _given_up(folder: OutputFolder) -> Source:
    """The dead letters of a finished run, with the ids and inputs that they had."""
    folder.identity()
    state = folder.load()
    require_dead_letters(str(folder.root), finished=state.finished, failed=state.failed)
    return JsonlSource((str(folder.root / "dead-letters.jsonl"),), Fields("id", "input"))
