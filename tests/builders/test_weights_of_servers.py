"""A server's weights: mounted read-only, loaded while they are verified, and never served unverified."""

import threading
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

import gpuserve
from gpuserve.runtime.loading import load_safetensors
from gpuserve.runtime.server import ServerRuntime
from gpuserve.runtime.weights.snapshot import Snapshot
from gpuserve.specs.batching import Batching


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSERVE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "source"
    folder.mkdir()
    save_file({"factor": np.full(1000, 3.0, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "factor"}')
    return folder


def scaler(source):
    class Scaler(gpuserve.WarmModelServer):
        weights = gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(source), volume="factors")

        def load(self):
            self.factor = float(load_safetensors(self.weights_path)["factor"][0])

        @gpuserve.batched
        def predict(self, batch: list[float]) -> list[float]:
            return [self.factor * number for number in batch]

    return Scaler


def flip_a_bit(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_load_is_told_the_folder_of_verified_weights(source):
    pytest.importorskip("torch", reason="the models extra is not installed")
    server_class = scaler(source)
    server_class.weights.fetch()
    with server_class.local() as server:
        assert server.predict.remote(2.0) == 6.0
        assert sorted(path.name for path in server.weights_path.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_that_were_never_fetched_end_the_start_and_say_how_to_fetch(source):
    with pytest.raises(gpuserve.WeightsNotFoundError, match="gpuserve weights fetch"), scaler(source).local():
        pytest.fail("served without weights")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_wrong_bit_ends_the_start_and_names_the_file(source, name):
    server_class = scaler(source)
    server_class.weights.fetch()
    flip_a_bit(server_class.weights.path() / name, -2)
    server_class.weights._forget(server_class.weights.root)  # another process, as it were
    with pytest.raises(gpuserve.ChecksumMismatchError, match=name), server_class.local():
        pytest.fail("served damaged weights")


def test_a_load_that_fails_on_damaged_weights_is_told_as_the_damage(source):
    class Parses(scaler(source)):
        def load(self):
            super().load()
            if self.factor != 3.0:
                raise ValueError("the model makes no sense")

    Parses.weights.fetch()
    flip_a_bit(Parses.weights.path() / "model.safetensors", -4000 + 3)
    Parses.weights._forget(Parses.weights.root)
    with pytest.raises(gpuserve.ChecksumMismatchError, match=r"model\.safetensors"), Parses.local():
        pytest.fail("served damaged weights")


def test_several_weights_go_by_their_names(source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save_file({"offset": np.ones(1, np.float32)}, other / "m.safetensors")

    class Both(gpuserve.WarmModelServer):
        weights: ClassVar = {
            "factors": gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(source), volume="factors"),
            "offsets": gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(other), volume="offsets"),
        }

        def load(self):
            with pytest.raises(gpuserve.EngineError, match="there are: factors, offsets"):
                _ = self.weights_path
            self.names = {name: sorted(one.name for one in path.iterdir()) for name, path in self.weights_paths.items()}

        @gpuserve.batched
        def predict(self, batch: list[int]) -> list[int]:
            return batch

    for cache in Both.weights.values():
        cache.fetch()
    with Both.local() as server:
        assert server.names == {"factors": ["config.json", "model.safetensors"], "offsets": ["m.safetensors"]}


def test_weights_of_a_server_that_is_not_started_say_so(source):
    with pytest.raises(gpuserve.EngineError, match="from load\\(\\) on"):
        _ = scaler(source)().weights_path


def test_two_volumes_at_one_place_are_refused(source):
    with pytest.raises(gpuserve.DeclarationError, match="mounts a second volume at '/w'"):

        class Twice(gpuserve.WarmModelServer):
            weights: ClassVar = {
                name: gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(source), volume=name, mount_path="/w")
                for name in ("one", "two")
            }


class Checking:
    """A verification that ends only when the server has loaded: it would never end if one waited for the other."""

    seconds = 0.0

    def __init__(self, folder, loaded, fault=None):
        self.snapshot, self.loaded, self.fault = Snapshot(folder, None), loaded, fault

    def wait(self):
        assert self.loaded.wait(30)
        if self.fault is not None:
            raise self.fault
        return self.snapshot


class Hooks:
    def __init__(self):
        self.loaded, self.done = threading.Event(), []

    def load(self):
        self.loaded.set()

    def to_device(self):
        self.done.append("to_device")

    def warm_up(self):
        self.done.append("warm_up")


def runtime_of(hooks, tmp_path, fault=None, **more):
    return ServerRuntime(
        hooks, name="Hooks", methods={}, inputs={}, batching=Batching(),
        weights={"weights": lambda: Checking(tmp_path, hooks.loaded, fault)}, **more,
    )  # fmt: skip


def run_start(runtime):
    import asyncio

    async def start():
        await runtime.load()
        await runtime.make_ready()

    asyncio.run(start())


def test_loading_and_verifying_go_on_at_once(tmp_path):
    hooks = Hooks()
    runtime = runtime_of(hooks, tmp_path)
    run_start(runtime)
    assert runtime.ready
    assert hooks.done == ["to_device", "warm_up"]


@pytest.mark.parametrize("kept_in_memory", [False, True])
def test_a_fault_found_after_loading_leaves_the_server_unready(tmp_path, kept_in_memory):
    hooks = Hooks()
    fault = gpuserve.ChecksumMismatchError("model.safetensors", "a", "b")
    runtime = runtime_of(hooks, tmp_path, fault, kept_in_memory=kept_in_memory)
    with pytest.raises(gpuserve.ChecksumMismatchError):
        run_start(runtime)
    assert not runtime.ready
    # what goes into a memory snapshot is verified before it is taken
    assert hooks.done == ([] if kept_in_memory else ["to_device", "warm_up"])


APP = """
    import errno, pathlib
    import modal, gpuserve
    import numpy as np

    app = modal.App("weighted")
    weights = gpuserve.VolumeWeightsCache(source=gpuserve.VolumeSource("made", name="m"), volume="served")
    fetch = gpuserve.register_weights(app, weights)
    IMAGE = gpuserve.ImageSpec.debian().pip("numpy==NUMPY", "safetensors==SAFETENSORS")
    plain = gpuserve.builders.lowering.modal_image(IMAGE)

    @app.function(image=plain, volumes={"/made": modal.Volume.from_name("made", create_if_missing=True)})
    def make():
        from safetensors.numpy import save_file
        save_file({"a": np.full(1000, 7.0, np.float32)}, "/made/m.safetensors")

    @app.function(image=plain, volumes={"/served": modal.Volume.from_name("served")})
    def damage():
        path = next(pathlib.Path("/served/snapshots").rglob("m.safetensors"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    @gpuserve.register(app)
    class Sevens(gpuserve.WarmModelServer):
        image = IMAGE
        weights = weights
        scaling = gpuserve.Scaling(scaledown_window=2)

        def load(self):
            from safetensors.numpy import load_file
            self.number = float(load_file(self.weights_path / "m.safetensors")["a"][0])
            try: (self.weights_path / "m.safetensors").write_bytes(b"")
            except OSError as error: self.refused = errno.errorcode[error.errno]

        @gpuserve.batched
        def predict(self, batch: list[int]) -> list[str]:
            return [f"{self.number} {self.refused} {self.weights_path.parts[1:3]}" for _ in batch]

    class Again(gpuserve.WarmModelServer):
        image = IMAGE
        weights = weights

        @gpuserve.batched
        def predict(self, batch: list[int]) -> list[int]:
            return batch

    again = gpuserve.register(app)(Again)

    @app.local_entrypoint()
    def main():
        found = {}
        make.remote()
        try: Sevens().predict.remote(1)
        except gpuserve.WeightsNotFoundError as error: found["before"] = "fetch_weights" in str(error)
        fetch.remote()
        found["served"] = Sevens().predict.remote(1)
        damage.remote()
        try: again().predict.remote(1)
        except gpuserve.ChecksumMismatchError as error: found["damaged"] = error.file
        report(found)
"""


def test_a_container_serves_weights_that_it_cannot_write_and_refuses_damaged_ones(run_app):
    from importlib.metadata import version

    pinned = APP.replace("NUMPY", version("numpy")).replace("SAFETENSORS", version("safetensors"))
    found = run_app(pinned.replace("import modal, gpuserve\n", "import modal, gpuserve, gpuserve.builders.lowering\n"))
    assert found == {
        "before": True,
        "served": "7.0 EROFS ('gpuserve-weights', 'served')",
        "damaged": "m.safetensors",
    }
