"""Rows: read from files, checked one by one, and cut into what is read and what is learnt."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_dataset_hub import REPO, running_dataset_hub

import gpuserve
from gpuserve.runtime.training.rows import checked_rows, held_back, read_rows

pytestmark = pytest.mark.wide

CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
]


def checked(rows, loss="auto"):
    return checked_rows(rows, loss, where="rows")


def faults(rows, loss="auto"):
    with pytest.raises(gpuserve.DatasetError) as error:
        checked(rows, loss)
    return error.value.faults


def test_what_is_learnt_follows_from_the_form_unless_it_is_said():
    pair = {"prompt": "1+1=", "completion": "2", "id": 7}
    assert checked([{"text": "a text"}]).loss == "all"
    assert (checked([pair]).loss, checked([pair]).rows) == ("completion", ({"prompt": "1+1=", "completion": "2"},))
    assert checked([pair], "all").loss == "all"
    chat = checked([{"messages": CHAT}])
    assert (chat.loss, chat.chat, chat.rows) == ("completion", True, ({"prompt": CHAT[:2], "completion": CHAT[2:]},))
    assert checked([{"messages": CHAT}], "assistant").rows == ({"messages": CHAT},)


@pytest.mark.parametrize(
    ("rows", "loss", "told"),
    [
        ([], "auto", "there is no row in it"),
        ([{"txt": "a"}], "auto", "row 1 has neither 'messages', nor 'prompt' and 'completion', nor 'text'"),
        ([{"text": "a"}, {"text": None}], "auto", "row 2 has 'None' as 'text', and must have text"),
        ([{"text": "a"}, {"prompt": "a"}], "auto", "row 2 has no 'text', which the rows before it have"),
        ([{"text": "a"}, ["a"]], "auto", "row 2 is \"['a']\", and must be an object"),
        ([{"text": "a"}], "completion", "loss = 'completion' cannot be told apart in rows of text"),
        ([{"messages": CHAT[:2]}], "auto", "row 1 ends with a message of the user, and must end with the assistant's"),
        ([{"messages": CHAT[2:]}], "auto", "row 1 ends with its only message, and must have one to answer"),
        ([{"messages": [{"role": "robot", "content": "x"}]}], "all", "row 1 has in 'messages' a message 0 of the role"),
        ([{"messages": []}], "all", "row 1 has in 'messages' '[]', and must have a list of messages"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_is_named(rows, loss, told):
    assert faults(rows, loss)[0].startswith(told)


def test_several_faults_come_at_once_and_not_all_of_a_thousand():
    assert len(faults([{"text": "a"}, *({"text": ""} for _ in range(1000))])) == 10


def test_lines_that_are_no_json_or_not_utf_8_are_named_by_their_number(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n\n{"text": "b"\n{"text": "\xff"}\n{"text": "c"}\n')
    with pytest.raises(gpuserve.DatasetError) as error:
        list(read_rows(gpuserve.FileDataset(file)))
    assert [fault.partition(" is not JSON")[0] for fault in error.value.faults] == ["line 3", "line 4"]
    with pytest.raises(gpuserve.DatasetError, match="is not a file here; correct the path"):
        list(read_rows(gpuserve.FileDataset(tmp_path / "gone.jsonl")))
    with pytest.raises(gpuserve.DatasetError, match=r"run: modal volume put nowhere FILE 2026/gone.jsonl"):
        list(read_rows(gpuserve.VolumeDataset("nowhere", "2026/gone.jsonl")))


def test_parquet_and_jsonl_give_the_same_rows(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": CHAT}, {"messages": CHAT[1:]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    digests = {checked(read_rows(gpuserve.FileDataset(path))).digest for path in tmp_path.iterdir()}
    assert len(digests) == 1
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(gpuserve.DatasetError, match="is not Parquet"):
        list(read_rows(gpuserve.FileDataset(tmp_path / "rows.parquet")))


@settings(max_examples=30)
@given(st.integers(20, 200), st.floats(0.2, 0.8), st.integers(0, 1000))
def test_what_is_kept_back_stays_so_when_rows_are_added(count, fraction, seed):
    rows = [{"text": f"row {number}"} for number in range(count)]
    try:
        learnt, kept = held_back(checked(rows), fraction, seed=seed, where="rows")
        more, kept_of_more = held_back(checked([*rows, {"text": "another"}]), fraction, seed=seed, where="rows")
    except gpuserve.DatasetError:
        return
    assert sorted(str(row) for row in (*learnt.rows, *kept.rows)) == sorted(map(str, rows))
    assert set(map(str, kept.rows)) <= set(map(str, kept_of_more.rows))
    assert set(map(str, learnt.rows)) <= set(map(str, more.rows))


@pytest.fixture(scope="module")
def hub():
    pytest.importorskip("datasets")
    with running_dataset_hub() as running:
        yield running


@pytest.fixture
def rows_of_hub(hub, tmp_path):
    """What a job's `rows` gives of a dataset, or its fault; the hub's address is read when a process begins."""
    program = """
import json, sys, gpuserve
class Tune(gpuserve.FineTuneJob):
    base = gpuserve.FolderSource("/nowhere")
    dataset = gpuserve.HubDataset(**json.loads(sys.argv[1]))
try:
    found = {"rows": list(Tune().rows())}
except gpuserve.DatasetError as error:
    found = {"fault": error.faults[0]}
print("TOLD " + json.dumps(found))
"""

    def read(**dataset):
        command = [sys.executable, "-c", program, json.dumps({"repo": REPO, **dataset})]
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOLD "))[5:])

    return read


def test_rows_of_the_hub_are_those_of_the_declared_revision_and_split(hub, rows_of_hub):
    first, other = hub.commits
    hub.commits[first] = {"train.jsonl": b'{"text": "a"}\n{"text": "b"}\n', "test.jsonl": b'{"text": "kept"}\n'}
    hub.commits[other] = {"train.jsonl": b'{"text": "of another commit"}\n'}
    assert rows_of_hub() == {"rows": [{"text": "a"}, {"text": "b"}]}
    assert rows_of_hub(split="test") == {"rows": [{"text": "kept"}]}
    assert rows_of_hub(revision=other) == {"rows": [{"text": "of another commit"}]}


def test_what_the_hub_does_not_give_is_named_and_its_code_is_not_run(hub, rows_of_hub, tmp_path):
    first, other = hub.commits
    hub.commits[other] = {"train.jsonl": b'{"text" "a"}\n'}
    assert "Revision 'gone' doesn't exist" in rows_of_hub(revision="gone")["fault"]
    assert "Missing a colon" in rows_of_hub(revision=other)["fault"]
    hub.commits[first] = {"rows.py": f"open({str(tmp_path / 'run')!r}, 'w')".encode()}
    assert "scripts are no longer supported" in rows_of_hub(revision=first)["fault"]
    assert not (tmp_path / "run").exists()
