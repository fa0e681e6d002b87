"""Jobs on the engine: fired, run by hand, caught in their history, asked by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import modal
import pytest
from click.testing import CliRunner

from gpuserve.cli.main import cli

APP = """
import modal, gpuserve
app = modal.App("reports")
heard = modal.Queue.from_name("heard", create_if_missing=True)

@gpuserve.register(app)
class Seconds(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.period(seconds=2)
    image = gpuserve.ImageSpec.debian()
    def run(self, run: gpuserve.JobRun) -> None:
        heard.put((run.idempotency_key, run.fence, run.trigger))

@gpuserve.register(app)
class Nightly(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.cron("0 2 * * *", zone="Europe/Berlin")
    clock = "tick"
    retries = 1
    retry_delay_s = 0
    image = gpuserve.ImageSpec.debian()
    def run(self, run: gpuserve.JobRun) -> str:
        if run.attempt == 1:
            raise ValueError("no data yet")
        return f"report of {run.nominal_time:%d %B}"
"""


@pytest.fixture(scope="module")
def deployed(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "app.py").write_text(APP)
    environment = {**os.environ, **engine.environment}
    command = [sys.executable, "-m", "modal", "deploy", "app.py"]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with engine.connected():
        yield engine


def jobs(*arguments):
    done = CliRunner().invoke(cli, ["jobs", *arguments, "--app", "reports"])
    return done.exit_code, done.output


def test_a_job_is_fired_once_for_each_of_its_times(deployed):
    heard = modal.Queue.from_name("heard", create_if_missing=True)
    found = [heard.get(timeout=40) for _ in range(3)]
    keys = [key for key, _, _ in found]
    assert len(set(keys)) == 3
    assert [fence for _, fence, _ in found] == [1, 2, 3]
    assert {trigger for _, _, trigger in found} == {"schedule"}
    code, text = jobs("pause", "Seconds")
    assert (code, text.startswith("Seconds is paused since 20")) == (0, True)


def test_a_run_by_hand_is_tried_again_and_then_done_for_good(deployed):
    nightly = modal.Function.from_name("reports", "Nightly")
    outcome = nightly.remote("2026-03-29T03:00")  # 02:00 did not exist that night in Berlin
    assert (outcome.state, outcome.attempt, outcome.value) == ("succeeded", 2, "report of 29 March")
    assert nightly.remote("2026-03-29T03:00").state == "already_done"
    code, text = jobs("run", "Nightly", "--at", "2026-03-29T03:00")
    assert (code, "succeeded for 2026-03-29T01:00:00Z already" in text) == (0, True)
    code, text = jobs("run", "Nightly", "--at", "2026-03-29T02:30")
    assert (code, "the nearest are" in text) == (1, True)
    [line] = json.loads(jobs("history", "Nightly", "--json")[1])
    assert (line["state"], line["attempt"], line["fence"]) == ("succeeded", 2, 2)


def test_the_command_line_tells_when_jobs_are_due_and_fills_in_what_has_no_run(deployed):
    listed = {line["job"]: line for line in json.loads(jobs("list", "--json")[1])}
    assert listed["Nightly"]["next"].startswith("20")
    assert "T02:00:00+0" in listed["Nightly"]["next"]
    code, text = jobs("backfill", "Nightly", "--from", "2026-11-01", "--to", "2026-11-02")
    assert (code, text) == (0, "1 runs to do, 0 done or under way already\n")
    assert jobs("history", "Weekly") == (1, "Error: the app has no job 'Weekly'; it has Seconds, Nightly\n")
    code, text = jobs("list")
    assert "cron 0 2 * * * in Europe/Berlin" in text


def test_an_app_that_is_not_there_is_named(deployed):
    done = CliRunner().invoke(cli, ["jobs", "list", "--app", "nothing"])
    assert done.exit_code == 1
    assert "no app 'nothing' with jobs is deployed here" in done.output
