"""Weights on their way into a model: mapped, not copied, and only where every name fits."""

from pathlib import Path

import pytest

import gpuserve
from gpuserve.runtime.loading import load_into, load_safetensors


@pytest.fixture(scope="module")
def torch():
    """Imported by the first test: every worker imports this file, and one runs it."""
    return pytest.importorskip("torch", reason="the models extra is not installed")


@pytest.fixture
def saved(tmp_path, torch):
    from safetensors.torch import save_file

    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.LayerNorm(128))
    state = model.state_dict()
    first = {name: state[name] for name in list(state)[:2]}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file({name: state[name] for name in state if name not in first}, tmp_path / "model-2.safetensors")
    return model, tmp_path


def mapped_at(address):
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= address < end:
            return line.split()[-1]
    return ""


def test_tensors_of_all_files_are_mapped_and_not_copied(saved, torch):
    model, folder = saved
    loaded = load_safetensors(folder)
    assert set(loaded) == set(model.state_dict())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert mapped_at(loaded["0.weight"].data_ptr()) == str(folder / "model-1.safetensors")


def test_a_model_without_values_gets_the_mapped_ones(saved, torch):
    model, folder = saved
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.LayerNorm(128))
    load_into(empty, folder)
    ones = torch.ones(3, 64)
    assert torch.equal(empty(ones), model(ones))
    assert mapped_at(empty[0].weight.data_ptr()).endswith("model-1.safetensors")


def test_a_model_of_another_shape_is_refused(saved, torch):
    with pytest.raises(gpuserve.WeightsCorruptError, match="does not fit Linear"):
        load_into(torch.nn.Linear(2, 2), saved[1])


def test_one_name_in_two_files_is_refused(saved):
    _, folder = saved
    (folder / "model-3.safetensors").write_bytes((folder / "model-2.safetensors").read_bytes())
    with pytest.raises(gpuserve.WeightsCorruptError, match="is in another file too"):
        load_safetensors(folder)


def test_a_folder_without_weights_says_what_to_give(tmp_path):
    with pytest.raises(gpuserve.WeightsNotFoundError, match="holds no safetensors"):
        load_safetensors(tmp_path)
