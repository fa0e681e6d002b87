"""What is in service: promoted and rolled back by hand, kept in a history, read by servers, safe from pruning."""

import json

import modal
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuserve
from gpuserve.cli.main import cli
from gpuserve.runtime.weights.aliases import ServedAlias
from gpuserve.runtime.weights.pruning import pruned
from gpuserve.runtime.weights.store import WeightsStore

pytestmark = pytest.mark.wide


@pytest.fixture
def published(tmp_path):
    """A store with three snapshots, and their names in the order in which they were published."""
    root, keys = tmp_path / "store", []
    for number in range(3):
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"number": number}))
        cache = gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(folder, name="bot"))
        keys.append(cache.fetch(root=root).snapshot)
    return root, keys


def weights(*arguments):
    done = CliRunner().invoke(cli, ["weights", *map(str, arguments)])
    return done.exit_code, done.output


def served(root):
    cache = gpuserve.VolumeWeightsCache(source=gpuserve.AliasSource("bot"), volume="v")
    return json.loads((cache.path(root=root) / "config.json").read_text())["number"]


def test_promoted_snapshots_are_what_an_alias_loads_and_a_rollback_is_one_command(published):
    root, keys = published
    assert weights("promote", "bot", keys[0], "--folder", root)[0] == 0
    assert served(root) == 0
    commit = keys[1].split("--")[2]
    code, text = weights("promote", "bot", commit[:12], "--folder", root, "--json")
    told = json.loads(text)
    assert (code, told["snapshot"], told["before"], told["changed"]) == (0, keys[1], keys[0], True)
    assert served(root) == 1
    assert weights("promote", "bot", keys[1], "--folder", root)[1].startswith(f"bot: {keys[1]} is in service already")
    assert weights("promote", "bot", keys[2], "--folder", root)[0] == 0
    assert [weights("rollback", "bot", "--folder", root)[0] for _ in range(3)] == [0, 0, 1]
    assert served(root) == 0
    assert weights("served", "--folder", root)[1].startswith(f"bot  {keys[0]}  since ")


def test_a_volume_s_snapshots_are_promoted_rolled_back_and_told_of_as_a_folder_s_are(published, engine):
    """In containers, which see no more than the volume; what they have changed is committed."""
    root, keys = published
    there = ("--volume", "adapters-in-a-volume", "--json")

    def told(*arguments):
        code, text = weights(*arguments, *there)
        assert code == 0, text
        return json.loads(text.splitlines()[-1])

    def in_service():
        alias = b"".join(modal.Volume.from_name("adapters-in-a-volume").read_file("aliases/bot.json"))
        return ServedAlias.from_bytes(alias, name="bot").served.snapshot

    with engine.connected():
        volume = modal.Volume.from_name("adapters-in-a-volume", create_if_missing=True)
        with volume.batch_upload() as batch:
            batch.put_directory(str(root), "/")
        assert told("served") == []
        assert told("promote", "bot", keys[0])["changed"] is True
        assert in_service() == keys[0]
        second = told("promote", "bot", keys[1].split("--")[2][:12])
        assert (second["snapshot"], second["before"], in_service()) == (keys[1], keys[0], keys[1])
        assert told("rollback", "bot")["snapshot"] == keys[0]
        assert (in_service(), [one["snapshot"] for one in told("served")]) == (keys[0], [keys[0]])
        code, text = weights("promote", "bot", "nothing", *there)
        assert (code, "is not the name of one" in text, "Traceback" in text) == (1, True, False)
        assert weights("rollback", "bot", *there)[1].count("nothing to roll back to") == 1
        assert in_service() == keys[0]


def test_what_cannot_be_served_is_refused_in_one_line(published):
    root, keys = published
    code, text = weights("promote", "bot", "nothing", "--folder", root)
    assert (code, "is not the name of one" in text, "Traceback" in text) == (1, True, False)
    with pytest.raises(gpuserve.WeightsNotFoundError, match="nothing is in service as bot"):
        served(root)
    next((root / "snapshots" / keys[0]).rglob("config.json")).write_text("{}")
    code, text = weights("promote", "bot", keys[0], "--folder", root)
    assert (code, "is damaged" in text) == (1, True)
    assert weights("promote", "../bot", keys[1], "--folder", root)[0] == 1
    assert weights("promote", "bot")[0] == 2
    assert weights("rollback", "bot", "--folder", root)[1].count("nothing to roll back to") == 1


def test_a_damaged_alias_is_refused_and_not_guessed(published):
    root, keys = published
    weights("promote", "bot", keys[0], "--folder", root)
    file = root / "aliases/bot.json"
    text = file.read_bytes()
    for place in range(0, len(text), 7):
        file.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
        with pytest.raises(gpuserve.WeightsCorruptError):
            WeightsStore(root).alias("bot")


def test_pruning_leaves_what_is_in_service_and_what_a_rollback_would_bring_back(published):
    root, keys = published
    for key in keys:
        weights("promote", "bot", key, "--folder", root)
    assert pruned(WeightsStore(root), (), apply=True) == [keys[0]]
    assert served(root) == 2
    assert weights("rollback", "bot", "--folder", root)[0] == 0
    assert served(root) == 1


def test_an_alias_is_not_fetched(tmp_path):
    cache = gpuserve.VolumeWeightsCache(source=gpuserve.AliasSource("bot"))
    with pytest.raises(gpuserve.WeightsSourceError, match="stands for what was promoted"):
        cache.fetch(root=tmp_path)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=20))
def test_a_history_of_promotions_and_rollbacks_is_a_stack(verbs):
    alias, model = ServedAlias(name="bot"), []
    for verb in verbs:
        if verb is None:
            if len(model) < 2:
                with pytest.raises(gpuserve.WeightsNotFoundError):
                    alias.rolled_back()
                continue
            model.pop()
            alias = alias.rolled_back()
        else:
            alias = alias.promoted(verb)
            model += [verb] if model[-1:] != [verb] else []
        assert (alias.served.snapshot if alias.served else None) == (model[-1] if model else None)
    assert ServedAlias.from_bytes(alias.to_bytes(), name="bot") == alias
