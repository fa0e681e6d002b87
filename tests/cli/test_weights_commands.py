"""`gpuserve weights`: what it shows, as text and as JSON, what it exits with, what it finds and what it removes."""

import importlib.util
import json
import re
import sys
import threading
from pathlib import Path

import modal
import pytest
from click.testing import CliRunner
from safetensors.numpy import save

from gpuserve.cli.main import cli as gpuserve


@pytest.fixture
def model(cli):
    """A model's folder beside the command; ``model(n)`` makes it the n-th one."""
    import numpy as np

    folder = cli.folder / "model"

    def write(number=0):
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"number": number}))
        (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
        (folder / "model.safetensors").write_bytes(save({"a": np.full(500, number, np.float32)}))
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    write()
    return write


@pytest.fixture
def three(cli, model):
    """The names of three snapshots in the folder ``store``, in the order in which they were published."""
    keys, there = [], ("--folder", str(cli.folder / "store"), "--json")
    for number in range(3):
        model(number)
        done = CliRunner().invoke(gpuserve, ["weights", "fetch", str(cli.folder / "model"), *there])
        keys.append(json.loads(done.output)["snapshot"])
    return keys


@pytest.fixture
def hub():
    """The hub on loopback that the tests of weights have."""
    if "weights_hub" not in sys.modules:
        place = Path(__file__).parents[1] / "weights" / "hub.py"
        spec = importlib.util.spec_from_file_location("weights_hub", place)
        sys.modules["weights_hub"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["weights_hub"])
    with sys.modules["weights_hub"].running_hub() as running:
        yield running


def flip(root, key, file, place=-7):
    path = root / "snapshots" / key / "files" / file
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def snapshots(cli):
    return sorted(path.name for path in (cli.folder / "store" / "snapshots").iterdir())


def test_fetch_tells_what_it_published_and_a_second_time_that_it_is_there(cli, model):
    size = model(0)
    first = cli("weights", "fetch", "./model", "--folder", "store").stdout
    [key] = snapshots(cli)
    commit = key.split("--")[-2]
    told = f"{key}\n3 files, {size:,} bytes, commit {commit}\n"
    assert first.endswith(f"fetched and published: {told}")
    assert cli("weights", "fetch", "./model", "--folder", "store").stdout.endswith(f"there already, and whole: {told}")

    again = cli.json("weights", "fetch", "./model", "--folder", "store")
    assert again.pop("digest")
    assert again == {"snapshot": key, "commit": commit, "files": 3, "size": size, "published": False,
                     "fetched": 0, "resumed": 0}  # fmt: skip
    # what is for a machine is one line of JSON and no bar beside it
    assert len(cli("weights", "fetch", "./model", "--folder", "store", "--json").stdout.splitlines()) == 1


def test_fetch_takes_and_leaves_the_files_that_it_is_told_to(cli, model):
    only = cli.json("weights", "fetch", "./model", "--folder", "store", "--include", "*.json", "--include", "*.txt")
    less = cli.json("weights", "fetch", "./model", "--folder", "store", "--exclude", "tokenizer/*")
    files = {
        key: sorted(path.name for path in (cli.folder / "store/snapshots" / key / "files").rglob("*.*"))
        for key in (only["snapshot"], less["snapshot"])
    }
    assert list(files.values()) == [["config.json", "vocab.txt"], ["config.json", "model.safetensors"]]


def test_list_tells_each_snapshot_and_what_is_unreadable_without_reading_the_files(cli, three):
    store = cli.folder / "store"
    flip(store, three[0], "model.safetensors")  # list reads manifests alone, and says so in its help
    (store / "snapshots" / three[1] / "manifest.json").write_text("{")
    lines = cli("weights", "list", "--folder", "store").stdout.splitlines()
    listed = {one["snapshot"]: one for one in cli.json("weights", "list", "--folder", "store")}

    assert sorted(listed) == sorted(three)
    assert [one for one in three if listed[one]["fault"]] == [three[1]]
    assert [listed[one]["commit"] for one in three] == [three[0].split("--")[-2], "", three[2].split("--")[-2]]
    shown = {line.split()[0]: line for line in lines}
    assert re.search(r"  2,\d{3} bytes  20\d\d-", shown[three[0]])
    assert listed[three[1]]["fault"] in shown[three[1]]


def test_verify_finds_one_byte_that_changed_names_its_file_and_exits_1(cli, three):
    assert cli("weights", "verify", "--folder", "store").stdout == "".join(f"{key}  whole\n" for key in sorted(three))
    bad = dict(zip(three, ("model.safetensors", "config.json", "tokenizer/vocab.txt"), strict=True))
    whole = bad.popitem()[0]
    for key, file in bad.items():
        flip(cli.folder / "store", key, file)

    lines = cli("weights", "verify", "--folder", "store", code=1).stdout.splitlines()
    told = dict(line.split("  ", 1) for line in lines)
    found = {one["snapshot"]: one["fault"] for one in json.loads(
        cli("weights", "verify", "--folder", "store", "--json", code=1).stdout)}  # fmt: skip
    assert told == {key: fault or "whole" for key, fault in found.items()}
    assert {key: fault.partition(" ")[0] for key, fault in found.items()} == {**bad, whole: ""}
    # one that is named is the only one that is read
    assert cli("weights", "verify", whole, "--folder", "store").stdout == f"{whole}  whole\n"
    assert cli("weights", "verify", three[1], "--folder", "store", code=1).stdout == f"{three[1]}  {told[three[1]]}\n"


def test_verify_finds_a_file_that_is_gone_and_one_that_is_too_many(cli, three):
    files = [cli.folder / "store/snapshots" / key / "files" for key in three]
    (files[0] / "model.safetensors").unlink()
    (files[1] / "added.py").write_text("raise SystemExit")
    lines = cli("weights", "verify", "--folder", "store", code=1).stdout
    found = dict(line.split("  ", 1) for line in lines.splitlines())
    assert "model.safetensors" in found[three[0]]
    assert "added.py" in found[three[1]]
    assert found[three[2]] == "whole"


def test_fetch_mends_what_verify_found(cli, three):
    flip(cli.folder / "store", three[2], "model.safetensors")
    assert cli.json("weights", "fetch", "./model", "--folder", "store")["published"] is True
    assert cli("weights", "verify", "--folder", "store").returncode == 0


def test_prune_shows_what_would_go_and_removes_only_that(cli, three):
    unused, kept, _ = three
    left = cli.folder / "store/incomplete/left-behind"
    left.mkdir()
    expected = [*sorted({*three} - {kept}), "incomplete/left-behind"]
    shown = cli("weights", "prune", "--folder", "store", "--keep", kept).stdout
    assert shown == "".join(f"would remove  {one}\n" for one in expected)
    assert (snapshots(cli), left.exists()) == (sorted(three), True)

    both = ("--keep", kept, "--keep", three[2])
    assert cli.json("weights", "prune", "--folder", "store", *both, "--apply") == [unused, "incomplete/left-behind"]
    assert (snapshots(cli), left.exists()) == (sorted(three[1:]), False)
    assert cli("weights", "verify", "--folder", "store").returncode == 0
    assert cli("weights", "prune", "--folder", "store", *both, "--apply").stdout == ""


def test_prune_leaves_what_is_in_service_and_what_a_rollback_would_bring_back(cli, three):
    for key in three[1:]:
        cli("weights", "promote", "model", key, "--folder", "store")
    assert cli("weights", "prune", "--folder", "store", "--apply").stdout == f"removed  {three[0]}\n"
    assert snapshots(cli) == sorted(three[1:])
    assert cli("weights", "rollback", "model", "--folder", "store").stdout.startswith(f"model: {three[1]} is in")


def test_prune_leaves_what_a_fetch_is_working_on(cli, three, hub):
    """A fetch that is in the middle of its work, held there by the hub, publishes all the same once it goes on."""
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(_total):
        begun.set()
        may_go_on.wait(60)

    hub.on_sent = hold
    repo, commit = sys.modules["weights_hub"].REPO, sys.modules["weights_hub"].COMMIT
    there = ("--folder", "store", "--json")
    working = cli.start("weights", "fetch", repo, "--revision", commit, *there, HF_ENDPOINT=hub.url, HF_TOKEN=None)
    assert begun.wait(60)
    assert cli.json("weights", "prune", "--folder", "store", "--apply") == sorted(three)
    may_go_on.set()

    said, _ = working.communicate(timeout=60)
    assert (working.returncode, snapshots(cli)) == (0, [json.loads(said)["snapshot"]])
    assert cli("weights", "verify", "--folder", "store").stdout == f"{snapshots(cli)[0]}  whole\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("prune", "--keep", "typo", "--apply"), 1, "no snapshot is called typo; nothing was removed"),
        (("fetch", "./absent"), 1, "/absent is not a folder here; correct the path"),
        (("fetch", "org/model", "--revision", "a b"), 2, "revision got 'a b'"),
        (("fetch",), 2, "Missing argument 'REPO'"),
        (("verify", "--quickly"), 2, "No such option"),
        (("prun",), 2, "No such command 'prun'"),
    ],
)
def test_what_cannot_be_done_is_told_once_with_the_exit_code_for_its_kind(cli, arguments, code, words):
    place = ("--folder", "store") if len(arguments) > 1 else ()
    assert words in cli.refused("weights", *arguments, *place, code=code)


def test_a_snapshot_that_is_not_there_is_not_whole(cli):
    assert cli("weights", "verify", "typo", "--folder", "store", code=1).stdout.startswith("typo  no weights are ")


def test_a_place_where_nothing_was_published_lists_nothing(cli):
    assert cli("weights", "list", "--folder", "store").stdout == "nothing is published\n"
    assert cli("weights", "verify", "--folder", "store").stdout == "nothing is published\n"
    assert json.loads(cli("weights", "list", "--folder", "store", "--json").stdout) == []
    assert json.loads(cli("weights", "prune", "--folder", "store", "--json").stdout) == []


def test_a_folder_of_this_machine_is_not_fetched_into_a_volume(cli, model):
    assert "into --folder; a container does not see it" in cli.refused("weights", "fetch", "./model")


def test_the_commands_do_the_same_in_a_volume_as_in_a_folder(cli, three, engine):
    """In containers of the engine: the changed byte is found there, and what is removed is gone from the volume."""
    flip(cli.folder / "store", three[0], "model.safetensors")

    def run(*arguments, code=0):
        done = CliRunner().invoke(gpuserve, ["weights", *arguments, "--volume", "weights-by-command"])
        assert done.exit_code == code, done.output
        return done.output

    def last_json(*arguments, code=0):
        return json.loads(run(*arguments, "--json", code=code).splitlines()[-1])

    with engine.connected():
        volume = modal.Volume.from_name("weights-by-command", create_if_missing=True)
        with volume.batch_upload() as batch:
            batch.put_directory(str(cli.folder / "store"), "/")
        assert [one["snapshot"] for one in last_json("list")] == sorted(three)
        found = {one["snapshot"]: one["fault"] for one in last_json("verify", code=1)}
        assert [key for key, fault in found.items() if "model.safetensors" in fault] == [three[0]]
        assert [key for key, fault in found.items() if not fault] == sorted(three[1:])
        assert f"{three[1]}  whole\n" in run("verify", three[1])
        assert "no snapshot is called typo; nothing was removed" in run("prune", "--keep", "typo", "--apply", code=1)

        assert last_json("prune", "--keep", three[1]) == sorted({*three} - {three[1]})
        assert len(volume.listdir("/snapshots")) == 3
        assert last_json("prune", "--keep", three[1], "--apply") == sorted({*three} - {three[1]})
        assert [one.path for one in volume.listdir("/snapshots")] == [f"snapshots/{three[1]}"]
        assert run("verify").splitlines()[-1] == f"{three[1]}  whole"
