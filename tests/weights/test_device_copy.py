"""The way of weights to a GPU, tried here without one: every byte arrives, whatever the pieces are."""

from __future__ import annotations

import math
import random

import pytest

import gpuserve


@pytest.fixture(scope="module")
def torch():
    """Imported by the first test: every worker imports this file, and one runs it."""
    return pytest.importorskip("torch", reason="the models extra is not installed")


def some_tensors(torch, seed):
    """Tensors of every type that torch has, some empty, some of one number."""
    from gpuserve.runtime.device_copy import _DTYPES

    print(f"seed {seed}")
    chance = random.Random(seed)
    found = {}
    for place, dtype in enumerate([*_DTYPES.values()] * 2):
        shape = chance.choice([(), (0, 3), (1,), (7,), (5, 3), (2, 3, 41), (1000,)])
        flat = bytearray(chance.randbytes(max(1, math.prod(shape)) * dtype.itemsize))
        if dtype == torch.bool:
            flat = bytearray(one % 2 for one in flat)
        found[f"{place} {dtype}"] = torch.frombuffer(flat, dtype=dtype)[: math.prod(shape)].view(shape)
    return found


def bits(torch, tensor):
    return tensor.flatten().view(torch.uint8).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_every_type_and_shape_arrives_bit_by_bit_in_pieces_of_any_size(torch, tmp_path, seed):
    from safetensors.torch import save_file

    from gpuserve.runtime.device_copy import copy_to_device

    file = tmp_path / "model.safetensors"
    saved = some_tensors(torch, seed)
    save_file(saved, file)
    piece, threads = random.Random(seed).choice([(1, 3), (7, 1), (64, 8), (4096, 2), (4 << 20, 8)])
    found = copy_to_device(file, torch.device("cpu"), threads=threads, piece=piece)
    assert set(found) == set(saved)
    for name, tensor in saved.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(torch, found[name]) == bits(torch, tensor)
    owners = [one.untyped_storage().data_ptr() for one in found.values() if one.numel()]
    assert len(set(owners)) == len(owners)  # a model that drops a tensor frees its memory


def test_a_file_that_is_cut_off_after_its_header_was_read_is_named(torch, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from gpuserve.runtime import device_copy

    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(100_000)}, file)
    whole = device_copy.read_header(file, file.name)
    file.write_bytes(file.read_bytes()[:300_000])
    monkeypatch.setattr(device_copy, "read_header", lambda *_: whole)  # as if it were cut in between
    with pytest.raises(gpuserve.WeightsCorruptError, match="ends at byte 300,000, before its tensors do"):
        device_copy.copy_to_device(file, torch.device("cpu"), piece=4096)


def test_numbers_of_less_than_a_byte_are_left_to_the_library_that_knows_them(torch, tmp_path):
    from gpuserve.runtime.device_copy import copy_to_device

    header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\x12")
    assert copy_to_device(file, torch.device("cpu")) is None
