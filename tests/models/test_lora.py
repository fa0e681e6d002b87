"""Real LoRA adapters of a tiny model, by PEFT: served one a batch, and mixed in one."""

from importlib.util import find_spec

import numpy as np
import pytest
from pydantic import BaseModel

import gpuserve

pytestmark = pytest.mark.wide

for library, extra in (("torch", "models"), ("peft", "train")):
    if find_spec(library) is None:
        pytest.skip(f"the {extra} extra is not installed", allow_module_level=True)

# torch and peft are imported by the tests: every worker imports this file, and one runs it

SIZE = 16


class Point(BaseModel):
    values: list[float]
    adapter: str | None = None


def base_model():
    import torch

    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE), torch.nn.Tanh(), torch.nn.Linear(SIZE, 2))


def config():
    import peft

    return peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Caches of two adapters, and what PEFT itself answers with each and without."""
    import peft
    import torch

    folder = tmp_path_factory.mktemp("lora")
    caches, models = {}, {None: base_model()}
    for seed, name in enumerate(("east", "west")):
        base = base_model()
        torch.manual_seed(seed)
        models[name] = peft.get_peft_model(base, config()).eval()
        models[name].save_pretrained(folder / name)
        source = gpuserve.AdapterSource(gpuserve.FolderSource(folder / name))
        caches[name] = gpuserve.VolumeWeightsCache(source=source, volume="lora")
    return caches, models


class Served(gpuserve.WarmModelServer):
    def load(self):
        import peft

        self.model = peft.get_peft_model(base_model(), config(), adapter_name="unused").eval()

    def load_adapter(self, name, path):
        self.model.load_adapter(str(path), adapter_name=name)

    def unload_adapter(self, name):
        self.model.delete_adapter(name)


class OneABatch(Served):
    def use_adapter(self, name):
        if name is None:
            self.model.base_model.disable_adapter_layers()
        else:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(name)

    def warm_up(self):
        self.use_adapter(None)

    @gpuserve.batched
    def project(self, batch: list[Point]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([point.values for point in batch])).tolist()


class Mixed(Served):
    @gpuserve.batched
    def project(self, batch: list[Point]) -> list[list[float]]:
        import torch

        names = [point.adapter or "__base__" for point in batch]
        with torch.inference_mode():
            return self.model(torch.tensor([point.values for point in batch]), adapter_names=names).tolist()


@pytest.mark.parametrize("mixed", [False, True], ids=["one a batch", "mixed"])
def test_adapters_answer_as_peft_itself_does(adapters, mixed, monkeypatch, tmp_path):
    import torch

    caches, models = adapters
    monkeypatch.setenv("GPUSERVE_HOME", str(tmp_path))
    for cache in caches.values():
        cache.fetch()
    server_class = type("Server", (Mixed if mixed else OneABatch,), {"adapters": caches, "mixed_adapters": mixed})
    rng = np.random.default_rng(11)
    points = [
        Point(values=rng.normal(size=SIZE).tolist(), adapter=(None, "east", "west")[number % 3]) for number in range(12)
    ]
    with server_class.local() as server, torch.inference_mode():
        answers = list(server.project.map(points, chunk=12))
        expected = [models[point.adapter](torch.tensor([point.values]))[0].tolist() for point in points]
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    assert len({tuple(np.round(model(torch.ones(1, SIZE)).tolist()[0], 4)) for model in models.values()}) == 3
