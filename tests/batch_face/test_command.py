"""`gpuserve batch`, on a mapper of this process: what it prints, how it leaves, and how it goes on."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpuserve.cli.main import cli

APP = """
import os, signal
import gpuserve

def double(batch):
    if 13 in batch and os.environ.get("UNLUCKY", "1") == "1":
        raise ValueError("thirteen")
    if 700 in batch and "KILL" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    return [2 * number for number in batch]

class Double(gpuserve.BatchMapper):
    target = double
    source = gpuserve.Items(range(1000), name="numbers")
    output = "out"
    batching = gpuserve.MapBatching(window=100, max_items=20, cost="items", max_outstanding=1)
    retries = gpuserve.MapRetries(max_attempts=2, initial_delay_s=0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "doubling.py").write_text(APP)
    yield tmp_path
    sys.modules.pop("doubling", None)


def batch(*arguments):
    return CliRunner().invoke(cli, ["batch", *arguments])


def committed(folder):
    rows = [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.read_text().splitlines()]
    return {row["id"]: row["output"] for row in rows}


def test_a_run_tells_its_end_writes_its_page_and_leaves_with_1_where_an_item_was_given_up(folder):
    done = batch("run", "doubling.py", "--report", "report.html")
    assert done.exit_code == 1, done.output
    assert "failed: item 13" in done.stderr
    assert "finished: 999 of 1,000 items in 10 files" in done.stderr
    assert done.stdout == "the report is in report.html\n"
    assert "<svg" in Path("report.html").read_text()
    assert committed(folder / "out") == {number: 2 * number for number in range(1000) if number != 13}


def test_json_is_one_line_alone_and_what_is_given_takes_the_place_of_what_is_declared(folder):
    (folder / "few.jsonl").write_text("1\n2\n3\n")
    done = batch("run", "doubling.py::Double", "--source", "few.jsonl", "--output", "other", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["status"], report["done"], report["failed"]) == ("finished", 3, 0)
    assert done.stderr == ""
    assert committed(folder / "other") == {0: 2, 1: 4, 2: 6}


def test_a_killed_run_is_seen_by_status_and_resumed_and_what_failed_is_retried(folder, monkeypatch):
    program = [sys.executable, "-m", "gpuserve.cli", "batch"]
    killing = {**os.environ, "KILL": "1"}
    killed = subprocess.run([*program, "run", "doubling.py"], env=killing, capture_output=True, check=False)
    assert killed.returncode == -9
    told = json.loads(batch("status", "out", "--json").stdout)
    assert told["state"] == "interrupted"
    assert 0 < told["done"] < 1000
    assert "was broken off, and can go on" in batch("status", "out").stdout

    resumed = batch("resume", "doubling.py")
    assert resumed.exit_code == 1, resumed.output
    assert "going on with" in resumed.stderr
    assert json.loads(batch("status", "out", "--json").stdout)["state"] == "finished"

    monkeypatch.setenv("UNLUCKY", "0")
    retried = batch("retry-failed", "doubling.py", "--json")
    assert retried.exit_code == 0, retried.output
    assert json.loads(retried.stdout)["done"] >= 1


def test_a_terminal_is_shown_a_bar_and_the_exit_code_is_the_shells(folder):
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "gpuserve.cli", "batch", "run", "doubling.py"],
        stderr=theirs,
        stdout=theirs,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        check=False,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux tells the end of a terminal
            break
        shown += piece
    os.close(ours)
    assert done.returncode == 1
    assert b"\x1b[?25l" in shown  # a cursor is hidden only for something that moves
    assert b"finished: 999 of 1,000 items" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("status", "nowhere"), "nowhere holds no run"),
        (("resume", "doubling.py"), "holds no run"),
        (("run", "doubling.py::Triple"), "'Triple' is no BatchMapper of it; there are: Double"),
        (("run", "missing.py"), "there is no file 'missing.py'"),
        (("run", "empty.py"), "it declares no BatchMapper"),
        (("run", "two.py"), "it has 2 mappers (first, second); write two.py::NAME"),
        (("run", "doubling.py", "--max-usd", "0"), "--max-usd"),
    ],
)
def test_misuse_is_one_line_and_changes_nothing(folder, arguments, told):
    (folder / "empty.py").write_text("")
    (folder / "two.py").write_text(
        "import gpuserve\nfirst = gpuserve.BatchMapper(target=len)\nsecond = gpuserve.BatchMapper(target=len)\n"
    )
    done = batch(*arguments)
    assert done.exit_code != 0
    assert told in done.output + str(done.exception)
    assert not (folder / "out").exists()
    for name in ("empty", "two"):
        sys.modules.pop(name, None)
