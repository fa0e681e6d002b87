"""Sources other than the hub, declarations, leases, and the command line."""

import json
import threading

import pytest
from click.testing import CliRunner
from weights_hub import COMMIT, REPO, model_files, tensors

import gpuserve
from gpuserve.cli.main import cli
from gpuserve.runtime.lease import DictLease, FileLease


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "my-model"
    for name, data in model_files(3, numbers=400).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    return made


def test_a_folder_is_a_source_whose_content_is_its_commit(folder, tmp_path):
    cache = gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(folder))
    first = cache.fetch(root=tmp_path / "store")
    assert contents(cache.path(root=tmp_path / "store")) == contents(folder)
    assert (first.published, cache.fetch(root=tmp_path / "store").published) == (True, False)

    (folder / "config.json").write_text("{}")
    pinned = gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(folder, digest=first.commit))
    with pytest.raises(gpuserve.WeightsSourceError, match=f"not the pinned {first.commit}"):
        pinned.fetch(root=tmp_path / "store")
    second = cache.fetch(root=tmp_path / "store")
    assert second.published
    assert second.snapshot != first.snapshot
    assert contents(pinned.path(root=tmp_path / "store"))["config.json"] != b"{}"


def test_a_link_out_of_a_folder_is_not_followed(folder, tmp_path):
    (tmp_path / "secret.json").write_text("canary")
    (folder / "extra.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(gpuserve.WeightsSourceError, match=r"extra\.json is no plain file of"):
        gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(folder)).fetch(root=tmp_path / "store")


def test_an_adapter_brings_its_own_files_and_fits_its_base(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(tensors(5, 80))
    (folder / "optimizer.safetensors").write_bytes(tensors(6, 80))
    origin = gpuserve.FolderSource(folder)
    good = gpuserve.VolumeWeightsCache(source=gpuserve.AdapterSource(origin, base="org/base"))
    good.fetch(root=tmp_path / "store")
    assert set(contents(good.path(root=tmp_path / "store"))) == {"adapter_config.json", "adapter_model.safetensors"}
    other = gpuserve.VolumeWeightsCache(source=gpuserve.AdapterSource(origin, base="org/other"))
    with pytest.raises(gpuserve.WeightsCorruptError, match="adapts 'org/base', expected 'org/other'"):
        other.fetch(root=tmp_path / "other")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: gpuserve.HubSource("../etc"), "repo"),
        (lambda: gpuserve.HubSource("a/b/c"), "repo"),
        (lambda: gpuserve.HubSource(REPO, revision="../x"), "revision"),
        (lambda: gpuserve.HubSource(REPO, allow_unsafe=("*.bin",)), "allow_unsafe"),
        (lambda: gpuserve.VolumeSource("v", path="../x"), "path"),
        (lambda: gpuserve.FolderSource("/x", digest="main"), "digest"),
        (lambda: gpuserve.VolumeWeightsCache(source=gpuserve.HubSource(REPO), mount_path="weights"), "mount_path"),
        (lambda: gpuserve.VolumeWeightsCache(source="org/model"), "source"),
        (lambda: gpuserve.VolumeWeightsCache(source=gpuserve.HubSource(REPO), workers=0), "workers"),
    ],
)
def test_a_wrong_declaration_names_its_field(make, field):
    with pytest.raises(gpuserve.DeclarationError, match=field):
        make()


class Entries:
    """A dict like Modal's, in memory."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def put_new(self, key, value):
        with self.lock:
            return self.values.setdefault(key, value) is value

    def put(self, key, value):
        self.values[key] = value

    def get(self, key):
        return self.values.get(key)

    def remove(self, key):
        self.values.pop(key, None)


def test_a_lease_lets_one_work_at_a_time_and_is_given_back(tmp_path):
    for lease in (DictLease(Entries(), ttl_s=2.0), FileLease(tmp_path)):
        inside, most, done = [], [], []

        def work(lease=lease, inside=inside, most=most, done=done):
            with lease.hold("k"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                done.append(1)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(30)
        assert (len(done), max(most)) == (6, 1)


def test_the_lease_of_a_dead_holder_is_taken_over():
    entries = Entries()
    entries.put("k", ("dead", 0.0))
    with DictLease(entries).hold("k"):
        assert entries.get("k")[0] != "dead"
    assert entries.values == {}


def run(*arguments):
    done = CliRunner().invoke(cli, ["weights", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_command_line_fetches_lists_verifies_and_prunes_a_folder(hub, tmp_path):
    hub.commits[COMMIT] = model_files(0, numbers=400)
    store = tmp_path / "store"
    code, text = run("fetch", REPO, "--revision", COMMIT, "--folder", store, "--json")
    fetched = json.loads(text)
    assert (code, fetched["published"]) == (0, True)
    [listed] = json.loads(run("list", "--folder", store, "--json")[1])
    assert (listed["snapshot"], listed["commit"]) == (fetched["snapshot"], COMMIT)
    assert run("verify", "--folder", store) == (0, f"{fetched['snapshot']}  whole\n")

    next(store.glob("snapshots/*/files/config.json")).write_bytes(b"{}")
    code, text = run("verify", "--folder", store)
    assert (code, "config.json is damaged" in text) == (1, True)

    (store / "incomplete" / "left-behind").mkdir()
    kept = json.loads(run("prune", "--folder", store, "--keep", fetched["snapshot"], "--json")[1])
    assert kept == ["incomplete/left-behind"]
    assert (store / "incomplete" / "left-behind").is_dir()
    assert run("prune", "--folder", store, "--keep", "typo", "--apply") == (
        1,
        "Error: no snapshot is called typo; nothing was removed\n",
    )
    gone = json.loads(run("prune", "--folder", store, "--apply", "--json")[1])
    assert gone == [fetched["snapshot"], "incomplete/left-behind"]
    assert json.loads(run("list", "--folder", store, "--json")[1]) == []


def test_the_command_line_works_on_a_volume_through_modal(hub, engine):
    hub.commits[COMMIT] = model_files(0, numbers=400)
    with engine.connected():
        code, text = run("fetch", REPO, "--revision", COMMIT, "--volume", "cli-models", "--json")
        assert code == 0, text
        fetched = json.loads(text.splitlines()[-1])
        code, text = run("verify", "--volume", "cli-models", "--json")
        assert json.loads(text.splitlines()[-1]) == [{"snapshot": fetched["snapshot"], "fault": ""}]
