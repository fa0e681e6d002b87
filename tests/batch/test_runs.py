"""Whole runs in this process: what goes in comes out once, in order, and what is wrong is named."""

import contextlib
import json
import threading

import psutil
import pytest

import gpuserve
from gpuserve.runtime.batch.events import RunStarted


def lengths(batch):
    return [len(text) for text in batch]


def rows(folder):
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.read_text().splitlines()]


def letters(folder):
    return [json.loads(line) for line in (folder / "dead-letters.jsonl").read_text().splitlines()]


QUICK = gpuserve.MapRetries(initial_delay_s=0)


def test_answers_come_in_input_order_under_the_ids_of_their_items(tmp_path):
    texts = ["x" * (7 * number % 50) for number in range(300)]
    (tmp_path / "docs.jsonl").write_text(
        "".join(json.dumps({"id": f"k{number}", "text": text}) + "\n" for number, text in enumerate(texts))
    )
    mapper = gpuserve.BatchMapper(
        target=lengths,
        source=gpuserve.Jsonl(tmp_path / "docs.jsonl", id_field="id", input_field="text"),
        output=tmp_path / "out",
        batching=gpuserve.MapBatching(window=64, max_items=10),
    )

    report = mapper.run()

    assert (report.status, report.done, report.failed, report.total) == ("finished", 300, 0, 300)
    assert rows(tmp_path / "out") == [{"id": f"k{number}", "output": len(text)} for number, text in enumerate(texts)]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [one["rows"] for one in manifest["shards"]] == [64, 64, 64, 64, 44]


@pytest.mark.parametrize("ends_well", [True, False])
def test_a_run_lets_go_of_its_files_and_threads_however_it_ends(tmp_path, ends_well):
    def told(event):
        if not ends_well and isinstance(event, RunStarted):
            raise LookupError("the listener failed")

    (tmp_path / "docs.jsonl").write_text('{"id": 1, "text": "a"}\n')
    source = gpuserve.Jsonl(tmp_path / "docs.jsonl", id_field="id", input_field="text")

    before = set(threading.enumerate())
    mapper = gpuserve.BatchMapper(target=lengths, source=source, output=tmp_path / "out")
    with contextlib.nullcontext() if ends_well else pytest.raises(LookupError, match="listener") as error:
        mapper.run(on_event=told)

    for thread in set(threading.enumerate()) - before:
        thread.join(20)
        assert not thread.is_alive()
    assert error is None or error.value  # it refers to all that ran, and nothing is left to the collector
    held = [one.path for one in psutil.Process().open_files()]
    assert [path for path in held if path.startswith(str(tmp_path))] == []


def test_a_poisoned_item_ends_alone_with_its_error_and_attempts(tmp_path):
    def refuse(batch):
        if 13 in batch:
            raise ValueError("thirteen")
        return [2 * number for number in batch]

    report = gpuserve.BatchMapper(target=refuse, source=range(100), output=tmp_path / "out", retries=QUICK).run()

    assert (report.done, report.failed) == (99, 1)
    [letter] = letters(tmp_path / "out")
    assert (letter["id"], letter["input"], letter["error_type"], letter["message"]) == (
        13,
        13,
        "ValueError",
        "thirteen",
    )
    assert letter["attempts"] > 3
    assert "in refuse" in letter["traceback"]


def test_retrying_what_failed_adds_what_is_answered_now(tmp_path):
    broken = [True]

    def sometimes(batch):
        if broken[0] and 13 in batch:
            raise ValueError("thirteen")
        return batch

    mapper = gpuserve.BatchMapper(target=sometimes, source=range(20), output=tmp_path / "out", retries=QUICK)
    mapper.run()
    broken[0] = False

    report = mapper.retry_failed()

    assert (report.done, report.failed) == (1, 0)
    assert rows(tmp_path / "out" / "retried-000") == [{"id": 13, "output": 13}]


def test_a_finished_run_runs_nothing_again(tmp_path):
    calls = []

    def noted(batch):
        calls.append(batch)
        return batch

    mapper = gpuserve.BatchMapper(target=noted, source=range(10), output=tmp_path / "out")
    mapper.run()
    mapper.run()

    assert len(calls) == 1
    assert mapper.status().state == "finished"


def test_a_folder_of_another_run_is_refused_and_says_how_to_go_on(tmp_path):
    gpuserve.BatchMapper(target=lengths, source=["a"], output=tmp_path / "out").run()

    with pytest.raises(gpuserve.OutputMismatchError, match=r"its source is .* another folder"):
        gpuserve.BatchMapper(target=lengths, source=["a", "b"], output=tmp_path / "out").run()
