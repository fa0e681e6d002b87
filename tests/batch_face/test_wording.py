"""What a run tells, as lines, as a plot and as a page: whatever comes in."""

import dataclasses
import io
import itertools
import math
import re
from html.parser import HTMLParser

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import gpuserve
from gpuserve.runtime.batch.events import (
    BatchReport,
    ItemFailed,
    Progress,
    RunFinished,
    RunStarted,
    ShardEntry,
)
from gpuserve.tools.batch.report import rates, ticks
from gpuserve.tools.batch.wording import failed_line, finished_lines, plain, progress_line

HOSTILE = "<script>pwned()</script> \x1b[31m\r\n[bold]x[/bold] \u202e"
REPORT = BatchReport(
    run_id="r1", output="out", status="finished", reason="", done=90, failed=10, total=100, elapsed_s=12.0,
    items_per_s=7.5, cost_usd=0.01, retries=2, shards=(ShardEntry("part-000000.jsonl", 90, 1234, "a" * 64),),
    dead_letters="out/dead-letters.jsonl", throughput=((0.0, 0), (1.0, 10), (2.0, 30), (12.0, 100)), how_to_go_on="",
)  # fmt: skip
PROGRESS = Progress(
    done=10, failed=1, read=40, total=100, outstanding=4, items_per_s=5.0, eta_s=18.0, cost_usd=None, containers=1,
    retries=0, elapsed_s=2.0, at=0.0,
)  # fmt: skip


class Outline(HTMLParser):
    """Elements in the order in which they open, and that each closes."""

    def __init__(self, text):
        super().__init__()
        self.opened, self.open, self.shown = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.opened.append(tag)
        if tag not in {"meta", "link", "polygon", "polyline", "line"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.shown += data


@given(
    steps=st.lists(st.tuples(st.floats(0.001, 1e4), st.integers(0, 10**6)), max_size=400),
    columns=st.integers(1, 50),
)
@settings(max_examples=60)
def test_the_plot_holds_every_item_that_was_answered(steps, columns):
    throughput = [(0.0, 0)]
    for seconds, items in steps:
        throughput.append((throughput[-1][0] + seconds, throughput[-1][1] + items))
    spans = rates(throughput, columns)
    assert len(spans) <= columns
    assert math.isclose(
        sum((end - start) * rate for start, end, rate in spans), throughput[-1][1], rel_tol=1e-6, abs_tol=1e-6
    )
    for (_, end, _), (start, _, _) in itertools.pairwise(spans):
        assert end == start


def test_moments_that_were_told_twice_are_one_and_the_last_count_holds():
    assert rates([(0.0, 0), (1.0, 10), (1.0, 20)]) == [(0.0, 1.0, 20.0)]
    assert rates([]) == []
    assert rates([(0.0, 5)]) == []


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_marks_are_round_and_inside(largest):
    marks = ticks(largest)
    assert marks[0] == 0
    assert 2 <= len(marks) <= 11
    assert marks[-1] <= largest * (1 + 1e-6)


def test_a_page_shows_the_figures_the_plot_and_every_file_and_loads_nothing():
    page = gpuserve.batch_report_html(REPORT)
    outline = Outline(page)
    assert outline.opened.count("svg") == 1
    for told in ("90 of 100", "part-000000.jsonl", "a" * 64, "$0.0100", "given up: 10", "8.3 on average, 20.0 at most"):
        assert told in outline.shown or told in page, told
    assert not re.search(r"<script|https?://|@import|url\(", page)


@given(st.text(max_size=60), st.sampled_from(["finished", "stopped"]))
@settings(max_examples=20)
def test_whatever_a_run_is_called_its_page_is_well_formed_and_runs_nothing(text, status):
    for hostile in (text, HOSTILE):
        report = dataclasses.replace(
            REPORT, run_id=hostile, output=hostile, status=status, reason=hostile, how_to_go_on=hostile,
            dead_letters=hostile, shards=(ShardEntry(hostile, 1, 1, hostile),), throughput=(),
        )  # fmt: skip
        outline = Outline(gpuserve.batch_report_html(report))
        assert "script" not in outline.opened
        assert "too short for a plot" in outline.shown


def test_a_page_is_written_whole_and_replaces_the_one_before(tmp_path):
    path = gpuserve.write_batch_report(REPORT, tmp_path / "report.html")
    gpuserve.write_batch_report(dataclasses.replace(REPORT, run_id="r2"), path)
    assert "run r2" in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_what_is_not_known_is_left_out_of_a_line():
    unknown = dataclasses.replace(PROGRESS, total=None, eta_s=None, containers=None, failed=0)
    assert progress_line(unknown) == "10, 5.0/s"
    assert progress_line(PROGRESS) == "10 of 100 (10 %), 5.0/s, 18 s left, 1 container, 1 failed"


def test_no_item_and_no_error_can_steer_a_terminal():
    event = ItemFailed(HOSTILE, 3, HOSTILE, "ValueError", HOSTILE * 50, 2, 0.0)
    for line in (failed_line(event), plain(HOSTILE)):
        assert line.isprintable()
    assert len(failed_line(event)) < 700


def test_a_stopped_run_says_why_and_how_to_go_on():
    stopped = dataclasses.replace(REPORT, status="stopped", reason="budget", how_to_go_on="run it again")
    told = finished_lines(stopped)
    assert told[0].startswith("stopped (budget): 90 of 100 items in 1 file")
    assert told[-1] == "run it again"


def test_failures_are_told_as_they_come_until_there_are_too_many_of_them():
    out = io.StringIO()
    progress = gpuserve.BatchProgress(file=out, every_s=0)
    progress(RunStarted("r1", "out", resumed=True, epoch=2, done=5, failed=0, total=100, at=0.0))
    for number in range(9):
        progress(ItemFailed(number, number, "docs row", "ValueError", "no", 3, 0.0))
    progress(PROGRESS)
    progress(RunFinished(REPORT, 0.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "going on with out: 5 of 100 items are committed already"
    assert sum(line.startswith("failed: item") for line in lines) == 5
    assert sum("only counted here" in line for line in lines) == 1
    assert progress_line(PROGRESS) in lines
    assert lines[-2:] == finished_lines(REPORT)


def test_a_bar_in_a_terminal_moves_and_leaves_only_what_was_said():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with gpuserve.BatchProgress(kind="bar", file=out) as progress:
        progress(RunStarted("r1", "out", resumed=False, epoch=1, done=0, failed=0, total=100, at=0.0))
        progress(PROGRESS)
        progress(ItemFailed("[bold]7[/bold]", 7, "docs row", "ValueError", "[red]no", 3, 0.0))
        progress(RunFinished(REPORT, 0.0))
    told = out.getvalue()
    assert "10 of 100 (10 %), 5.0/s" in told
    assert "failed: item [bold]7[/bold] (docs row) after 3 attempts: ValueError: [red]no" in told
    assert told.rstrip().endswith("given up: 10, in out/dead-letters.jsonl")


def test_an_unknown_kind_and_a_wrong_time_are_told_together():
    with pytest.raises(gpuserve.DeclarationError) as refused:
        gpuserve.BatchProgress(kind="widget", every_s=-1)
    assert len(refused.value.faults) == 2
