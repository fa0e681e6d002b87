"""Which files of a source are taken: the safe ones, and what was allowed by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from gpuserve.exceptions import UnsafeWeightsError, WeightsSourceError
from gpuserve.specs.source import FolderSource, HubSource, VolumeSource

__all__ = ["is_safe", "selected"]

# What can run no code when it is read as what its name says. All else is left, unless named.
_SAFE = frozenset(
    {".safetensors", ".json", ".jsonl", ".txt", ".md", ".model", ".spm", ".bpe", ".vocab", ".tiktoken", ".jinja",
     ".yaml", ".yml"}
)  # fmt: skip
_SAFE_NAMES = frozenset({"LICENSE", "NOTICE", "README", "COPYING"})
# What holds weights in a form that its loader can be made to run code by, or that we cannot check.
_UNSAFE_WEIGHTS = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".msgpack", ".joblib", ".gguf",
     ".onnx", ".tflite", ".pb", ".ot", ".nemo", ".engine", ".plan", ".keras"}
)  # fmt: skip


def is_safe(path: str) -> bool:
    """Whether a file of this name is taken without being named.

    Examples:
        >>> [is_safe(name) for name in ("model.safetensors", "pytorch_model.bin", "modeling_x.py")]
        [True, False, False]
    """
    name = PurePosixPath(path)
    return name.suffix.lower() in _SAFE or name.name in _SAFE_NAMES


def selected(paths: Iterable[str], source: HubSource | FolderSource | VolumeSource) -> tuple[str, ...]:
    """The files to take of *paths*, sorted.

    Raises:
        UnsafeWeightsError: If there are weights, and none that are safe or allowed.
        WeightsSourceError: If nothing is left, or a file allowed by name is not there.
    """
    every = sorted(path for path in paths if not _is_hidden(path))
    absent = [name for name in source.allow_unsafe if name not in every]
    if absent:
        raise WeightsSourceError(f"{source} has no {', '.join(absent)}, which allow_unsafe names; correct the name")
    wanted = [path for path in every if _wanted(path, source)]
    taken = tuple(path for path in wanted if is_safe(path) or path in source.allow_unsafe)
    has_weights = any(path.endswith(".safetensors") or path in source.allow_unsafe for path in taken)
    refused = tuple(
        path for path in wanted if path not in taken and PurePosixPath(path).suffix.lower() in _UNSAFE_WEIGHTS
    )
    if refused and not has_weights:
        raise UnsafeWeightsError(refused, f"{source} has no safetensors among the files to take")
    if not taken:
        raise WeightsSourceError(f"{source} has no file to take: of {len(every)} files, include and exclude leave none")
    return taken


def _wanted(path: str, source: HubSource | FolderSource | VolumeSource) -> bool:
    if path in source.allow_unsafe:
        return True
    return (not source.include or _matches(path, source.include)) and not _matches(path, source.exclude)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, one) for one in patterns)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
