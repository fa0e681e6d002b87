"""From the last checkpoint to the served alias: published with a manifest, promoted only if the gates hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import TrainingError, WeightsError
from gpuserve.runtime.lease import FileLease
from gpuserve.runtime.ports import VolumePort
from gpuserve.runtime.weights.aliases import AliasEntry
from gpuserve.runtime.weights.fetch import FetchRun
from gpuserve.runtime.weights.snapshot import open_snapshot
from gpuserve.runtime.weights.store import WeightsStore
from gpuserve.specs.source import AdapterSource, FolderSource
from gpuserve.specs.tuning import Gate

__all__ = ["Promotion", "export", "promote", "publish"]

_TAKEN = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})
_LEFT = frozenset({"trainer_state.json"})


@dataclass(frozen=True)
class Promotion:
    """What the gates said.

    Attributes:
        promoted: Whether the new adapter is in service.
        reason: Why it is, or is not.
        served: The snapshot in service; empty if there is none.
        served_metrics: What the one in service before was measured at, on the same rows.
    """

    promoted: bool
    reason: str
    served: str
    served_metrics: Mapping[str, float]


def export(checkpoint: Path, target: Path, *, base: str) -> Path:
    """Copy an adapter out of a checkpoint: its two files and the tokenizer's, under the base's own name."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in _TAKEN and path.name not in _LEFT:
            shutil.copyfile(path, target / path.name)
    config = target / "adapter_config.json"
    told = json.loads(config.read_text())
    told["base_model_name_or_path"] = base  # not the folder that it had in this container
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    return target


def publish(store: WeightsStore, volume: VolumePort, adapter: Path, *, name: str, base: str) -> str:
    """Publish an exported adapter under a manifest; the snapshot's name. Published once, however often it is called.

    Raises:
        WeightsError: If it cannot be; nothing is published then.
    """
    source = AdapterSource(FolderSource(adapter, name=name), base=base)
    store.prepare()
    return FetchRun(store, source, volume, FileLease(store.incomplete)).run().snapshot


def promote(
    store: WeightsStore,
    volume: VolumePort,
    snapshot: str,
    *,
    name: str,
    gates: Sequence[Gate],
    metrics: Mapping[str, float],
    evaluated_on: str,
    measure: Callable[[Path], Mapping[str, float]],
) -> Promotion:
    """Put *snapshot* in service under *name* if every gate holds against the one that is.

    Args:
        store: The adapters.
        volume: Committed after a promotion.
        snapshot: The new adapter.
        name: The alias.
        gates: What must hold; without any, nothing is promoted.
        metrics: The new adapter's.
        evaluated_on: The digest of the rows that it was measured on.
        measure: Measures an adapter in a folder on the same rows, where that was not done before.
    """
    alias = store.alias(name)
    served = alias.served
    if served is not None and served.snapshot == snapshot:
        return Promotion(True, "it is in service already", snapshot, {})
    before = served.snapshot if served is not None else ""
    if not gates:
        by_hand = f"gpuserve weights promote {name} {snapshot}"
        return Promotion(False, f"no gate is declared, so it is only published; {by_hand}", before, {})
    try:
        known = _measured(store, served, evaluated_on, measure) if served is not None else None
    except (WeightsError, TrainingError) as error:
        return Promotion(False, f"the one in service cannot be measured: {error}", before, {})
    refusals = [one for one in (gate.refusal(metrics, known) for gate in gates) if one is not None]
    if refusals:
        return Promotion(False, "; ".join(refusals), before, known or {})
    store.record_alias(alias.promoted(snapshot, metrics, evaluated_on))
    volume.commit()
    held = ", ".join(gate.metric for gate in gates)
    against = "the one in service" if served is not None else "nothing in service before"
    return Promotion(True, f"{held} held against {against}", snapshot, known or {})


def _measured(
    store: WeightsStore, served: AliasEntry, evaluated_on: str, measure: Callable[[Path], Mapping[str, float]]
) -> Mapping[str, float]:
    if served.metrics and evaluated_on and served.evaluated_on == evaluated_on:
        return served.metrics  # measured on the very same rows when it was promoted
    return measure(open_snapshot(store.folder(served.snapshot)).path)
