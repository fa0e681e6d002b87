"""What is timed, each in a process of its own: `python -m benchmarks.weights.tasks NAME ARGUMENTS` prints seconds."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1


def hashlib_threads(files: str) -> float:
    """sha256 of every file by hashlib, as many at once as there are cores."""
    paths = sorted(Path(files).iterdir())

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    begun = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(digest, paths))
    return time.perf_counter() - begun


def sha256sum(files: str) -> float:
    """The same by coreutils, as many processes at once as there are cores."""
    paths = "\0".join(str(path) for path in sorted(Path(files).iterdir()))
    begun = time.perf_counter()
    subprocess.run(
        ["/usr/bin/xargs", "-0", "-n1", f"-P{THREADS}", "/usr/bin/sha256sum"],
        input=paths, text=True, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begun


def verify(snapshot: str) -> float:
    """Everything that is verified before weights are served."""
    from gpuserve.runtime.weights.snapshot import open_snapshot

    begun = time.perf_counter()
    open_snapshot(Path(snapshot))
    return time.perf_counter() - begun


def load(snapshot: str) -> float:
    """A model built on the meta device gets its weights, mapped."""
    model = _empty_model(Path(snapshot) / "files")
    begun = time.perf_counter()
    _map(model, Path(snapshot) / "files")
    return time.perf_counter() - begun


def load_verified(snapshot: str) -> float:
    """The same, while they are verified."""
    return _while_verified(snapshot, _map)


def copy(snapshot: str) -> float:
    """The same and every byte copied once, as to a device."""
    model = _empty_model(Path(snapshot) / "files")
    begun = time.perf_counter()
    _copy(model, Path(snapshot) / "files")
    return time.perf_counter() - begun


def copy_verified(snapshot: str) -> float:
    """The same, while they are verified."""
    return _while_verified(snapshot, _copy)


def fetch_ours(url: str, commit: str, target: str) -> float:
    """A fetch into an empty store: hashed as it comes, synced, read back, published."""
    os.environ["HF_ENDPOINT"] = url

    from gpuserve.runtime.lease import NoLease
    from gpuserve.runtime.ports import PlainFolder
    from gpuserve.runtime.weights.fetch import FetchRun
    from gpuserve.runtime.weights.store import WeightsStore
    from gpuserve.specs.source import HubSource

    _import_the_hub()
    run = FetchRun(WeightsStore(Path(target)), HubSource("org/model", revision=commit), PlainFolder(), NoLease())
    begun = time.perf_counter()
    report = run.run()
    spent = time.perf_counter() - begun
    if not report.published:
        raise RuntimeError("nothing was published")
    return spent


def fetch_hub(url: str, commit: str, target: str) -> float:
    """huggingface_hub's own download, then the sha256 of what came."""
    os.environ.update({"HF_ENDPOINT": url, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    from huggingface_hub import snapshot_download

    _import_the_hub()
    begun = time.perf_counter()
    folder = Path(snapshot_download("org/model", revision=commit, cache_dir=target, max_workers=8))
    hashlib_threads(str(folder))
    spent = time.perf_counter() - begun
    if not any(folder.glob("*.safetensors")):
        raise RuntimeError("nothing was downloaded")
    return spent


def fetch_hub_synced(url: str, commit: str, target: str) -> float:
    """The same, and what came made durable, as ours is."""
    spent = fetch_hub(url, commit, target)
    again = time.perf_counter()
    for path in Path(target).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return spent + time.perf_counter() - again


def _import_the_hub() -> None:
    """Load now what the hub's client loads when it is first used: imports are not what is measured."""
    for name in ("file_download", "hf_api", "_snapshot_download"):
        importlib.import_module(f"huggingface_hub.{name}")


def _empty_model(files: Path) -> Any:
    import torch
    from safetensors import safe_open

    model = torch.nn.Module()
    for file in sorted(files.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                shape = opened.get_slice(name).get_shape()
                model.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device="meta")))
    return model


def _map(model: Any, files: Path) -> None:
    from gpuserve.runtime.loading import load_into

    load_into(model, files)


def _copy(model: Any, files: Path) -> None:
    _map(model, files)
    for name, parameter in list(model.named_parameters()):
        setattr(model, name, type(parameter)(parameter.detach().clone()))


def _while_verified(snapshot: str, loading: Callable[[Any, Path], None]) -> float:
    from gpuserve.runtime.weights.snapshot import begin_snapshot

    model = _empty_model(Path(snapshot) / "files")
    begun = time.perf_counter()
    verification = begin_snapshot(Path(snapshot))
    loading(model, verification.snapshot.path)
    verification.wait()
    return time.perf_counter() - begun


_TASKS: dict[str, Callable[..., float]] = {
    task.__name__: task
    for task in (
        hashlib_threads, sha256sum, verify, load, load_verified, copy, copy_verified, fetch_ours, fetch_hub,
        fetch_hub_synced,
    )
}  # fmt: skip


def main() -> None:
    """Run one task."""
    name, *arguments = sys.argv[1:]
    spent = _TASKS[name](*arguments)
    if name.startswith("fetch"):
        shutil.rmtree(arguments[-1])
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
