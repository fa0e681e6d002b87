"""Tensors of a verified folder: mapped from its files for the CPU, and for a GPU copied from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpuserve.exceptions import WeightsCorruptError, WeightsNotFoundError

if TYPE_CHECKING:
    import torch

__all__ = ["load_into", "load_safetensors"]


def load_safetensors(path: Path, *, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file, or of all those in a folder, by its name.

    On the CPU the tensors are views of the mapped files: nothing is copied, and pages are read when they
    are used. For a GPU several threads read the files into pinned memory, from which it fetches them.

    Args:
        path: A file or a folder, as `VolumeWeightsCache.path` gives it.
        device: As torch names it, e.g. ``"cuda:0"``.

    Raises:
        WeightsNotFoundError: If there is no safetensors file.
        WeightsCorruptError: If two files have a tensor of one name.
    """
    found: dict[str, torch.Tensor] = {}
    for file in _files(path):
        for name, tensor in _tensors(file, device):
            if name in found:
                raise WeightsCorruptError(file.name, f"the tensor {name!r} is in another file too")
            found[name] = tensor
    return found


def load_into(model: torch.nn.Module, path: Path, *, device: str = "cpu") -> None:
    """Give a model its weights; build it under ``with torch.device("meta")``, so that it has none before.

    Its parameters become the loaded tensors themselves. Buffers that the files do not hold must not be on
    the meta device.

    Args:
        model: The model.
        path: A file or a folder of weights, whose names are the model's.
        device: Where it is to run.

    Raises:
        WeightsCorruptError: If names or shapes are not the model's, or something is left without a value.
    """
    try:
        model.load_state_dict(load_safetensors(path, device=device), strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsCorruptError(str(path), f"it does not fit {type(model).__name__}: {error}") from None
    empty = [name for name, one in (*model.named_parameters(), *model.named_buffers()) if one.is_meta]
    if empty:
        raise WeightsCorruptError(str(path), f"{type(model).__name__} has no value for {', '.join(empty[:5])}")


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise WeightsNotFoundError(f"{path} holds no safetensors; give the folder that VolumeWeightsCache.path gave")
    return files


def _tensors(file: Path, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    import torch
    from safetensors import safe_open

    from gpuserve.runtime.device_copy import copy_to_device

    copied = copy_to_device(file, torch.device(device)) if torch.device(device).type == "cuda" else None
    if copied is not None:
        yield from copied.items()
        return

    with safe_open(file, framework="pt", device=device) as opened:
        for name in opened.keys():  # noqa: SIM118 (no mapping, but safetensors' own handle)
            yield name, opened.get_tensor(name)
