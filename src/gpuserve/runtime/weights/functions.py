"""What runs in Modal functions on behalf of a cache; each is told its cache by its environment."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from gpuserve.exceptions import WeightsError
from gpuserve.runtime.lease import DictLease
from gpuserve.runtime.ports import LeaseEntries, ModalVolume
from gpuserve.runtime.weights.fetch import FetchReport, FetchRun, Progress
from gpuserve.runtime.weights.promotion import InService, in_service, promoted, rolled_back
from gpuserve.runtime.weights.pruning import Listed, listed, pruned, verified
from gpuserve.runtime.weights.store import WeightsStore, fetchable
from gpuserve.specs.weights import WeightsDeclaration

__all__ = [
    "CACHE",
    "LEASES",
    "fetch_weights",
    "list_weights",
    "promote_weights",
    "prune_weights",
    "rollback_weights",
    "served_weights",
    "verify_weights",
]

CACHE = "GPUSERVE_WEIGHTS_CACHE"
LEASES = "gpuserve-weights-leases"
_LOG_EVERY_S = 5.0


def _cache() -> tuple[WeightsDeclaration, WeightsStore, ModalVolume]:
    text = os.environ.get(CACHE)
    if text is None:
        raise WeightsError(f"{CACHE} is not set; declare this function with gpuserve.register_weights(app, cache)")
    cache = WeightsDeclaration(**json.loads(text))
    return cache, WeightsStore(Path(cache.mounted_at)), ModalVolume(cache.volume)


def fetch_weights(refresh: bool = False) -> FetchReport:
    """Fetch the cache's weights into its volume, unless they are there and whole."""
    cache, store, volume = _cache()
    run = FetchRun(store, fetchable(cache.source), volume, DictLease(LeaseEntries(LEASES)), _Log(), cache.workers)
    report = run.run(refresh=refresh)
    _say({"event": "weights", "published": report.published, "snapshot": report.snapshot, "bytes": report.size})
    return report


def list_weights() -> list[Listed]:
    """What the volume holds."""
    _, store, volume = _cache()
    volume.reload()
    return listed(store)


def verify_weights(snapshot: str = "") -> list[tuple[str, str]]:
    """Every snapshot, or one, and what is wrong with it; nothing where it is whole."""
    _, store, volume = _cache()
    volume.reload()
    return verified(store, snapshot)


def prune_weights(keep: tuple[str, ...], apply: bool = False) -> list[str]:
    """What is not to be kept, and what interrupted fetches left; removed where *apply* says so."""
    _, store, volume = _cache()
    volume.reload()
    gone = pruned(store, keep, apply=apply)
    if apply:
        volume.commit()
    return gone


def promote_weights(name: str, revision: str) -> InService:
    """Put a snapshot in service under a name, verified first."""
    _, store, volume = _cache()
    volume.reload()
    told = promoted(store, name, revision)
    volume.commit()
    return told


def rollback_weights(name: str) -> InService:
    """Put what was in service under a name before in service again."""
    _, store, volume = _cache()
    volume.reload()
    told = rolled_back(store, name)
    volume.commit()
    return told


def served_weights() -> list[InService]:
    """What is in service, by name."""
    _, store, volume = _cache()
    volume.reload()
    return in_service(store)


class _Log:
    """Progress as lines of JSON, a few a minute."""

    def __init__(self) -> None:
        self._lock, self._next = threading.Lock(), time.monotonic() + _LOG_EVERY_S

    def __call__(self, progress: Progress) -> None:
        with self._lock:
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + _LOG_EVERY_S
        _say({"event": "weights_progress", "file": progress.file, "done": progress.done, "total": progress.total})


def _say(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
