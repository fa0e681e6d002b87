"""Policies of jobs on the engine: overlaps, time-outs, outages, pauses; and who is told of them."""

from __future__ import annotations

import http.server
import json
import queue
import threading
import time
from contextlib import contextmanager

import modal
import pytest
from click.testing import CliRunner

from gpuserve.cli.main import cli
from gpuserve.engine import LocalEngine

pytestmark = [pytest.mark.wide, pytest.mark.timeout(300)]

APP = """
import threading
import modal, gpuserve
app = modal.App("policies")
begun = modal.Queue.from_name("begun", create_if_missing=True)
go = modal.Queue.from_name("go", create_if_missing=True)

class Told(gpuserve.ScheduledJob):
    schedule = gpuserve.Schedule.period(seconds=2)
    image = gpuserve.ImageSpec.debian()
    alerts = gpuserve.JobAlerts(webhook=gpuserve.SecretSpec(name="chat"), per_hour=60)

class Waits(Told):
    def run(self, run):
        begun.put(run.idempotency_key, partition=run.job)
        go.get(timeout=100, partition=run.job)

@gpuserve.register(app)
class Skipping(Waits):
    pass

@gpuserve.register(app)
class Queueing(Waits):
    overlap = "queue_one"

@gpuserve.register(app)
class Replacing(Waits):
    overlap = "cancel_other"

@gpuserve.register(app)
class Often(Told):
    schedule = gpuserve.Schedule.period(seconds=1)
    def run(self, run):
        begun.put(run.idempotency_key, partition=run.job)

@gpuserve.register(app)
class Overrunning(Told):
    schedule = gpuserve.Schedule.cron("0 2 * * *", zone="Europe/Berlin")
    timeout_s = 5
    def run(self, run):
        threading.Event().wait(100 if run.nominal_time.day == 1 else 0)
"""

# The same app, with the job alone that an outage is shown by.
OFTEN = (
    APP.partition("class Waits")[0]
    + "@gpuserve.register(app)\nclass Often"
    + (APP.partition("class Often")[2].partition("@gpuserve")[0])
)


@contextmanager
def chat():
    """A webhook that takes what Slack's takes; what it heard is in the queue."""
    heard = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/services/T0/B0/hook", heard
        finally:
            server.shutdown()
            thread.join()


def deploy(engine, modal_forks, folder, source, webhook):
    (folder / "app.py").write_text(source)
    for arguments in (("secret", "create", "chat", f"GPUSERVE_ALERT_WEBHOOK={webhook}"), ("deploy", "app.py")):
        done = modal_forks(*arguments, environment=engine.environment, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def heard(engine, modal_forks, tmp_path_factory):
    """Of the deployed app's alerts."""
    with chat() as (webhook, told):
        deploy(engine, modal_forks, tmp_path_factory.mktemp("policies"), APP, webhook)
        with engine.connected():
            yield told


def jobs(*arguments):
    done = CliRunner().invoke(cli, ["jobs", *arguments, "--app", "policies"])
    assert done.exit_code == 0, done.output
    return done.output


def history(job):
    """What became of each time, the oldest first."""
    return [(one["nominal"], one["state"]) for one in reversed(json.loads(jobs("history", job, "--json")))]


def until(job, holds):
    """The history once *holds* of it; each look takes the engine a moment."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if holds(found := history(job)):
            return found
    pytest.fail(f"it never came true of {found}")


def begun(job):
    """The next run that begins, as its nominal time."""
    key = modal.Queue.from_name("begun", create_if_missing=True).get(timeout=60, partition=job)
    return key.rpartition("/")[2]


def go(job, *, times=1):
    modal.Queue.from_name("go", create_if_missing=True).put_many(["go"] * times, partition=job)


def none_has_begun(job):
    return modal.Queue.from_name("begun", create_if_missing=True).len(partition=job) == 0


def count(found, state):
    return sum(one == state for _, one in found)


def left_of(found):
    """All but what a paused job skipped."""
    return [(at, state) for at, state in found if state != "skipped"]


def next_of(heard, job):
    """What the chat hears next of a job; a busy machine has others miss their seconds."""
    while not (text := heard.get(timeout=30)).startswith(f"{job}: "):
        continue
    return text.partition(": ")[2]


def test_a_time_that_comes_while_a_run_is_at_work_is_skipped(heard):
    first = begun("Skipping")
    found = until("Skipping", lambda found: count(found, "skipped") >= 2)
    assert none_has_begun("Skipping")
    assert [state for at, state in found if at > first] == ["skipped"] * (len(found) - 1)
    assert dict(found)[first] == "running"
    go("Skipping")
    later = begun("Skipping")
    jobs("pause", "Skipping")
    go("Skipping")
    found = until("Skipping", lambda found: dict(found)[later] == "succeeded")
    assert dict(found)[first] == "succeeded"
    assert {state for at, state in found if first < at < later} == {"skipped"}


def test_one_time_that_comes_while_a_run_is_at_work_waits_and_more_are_skipped(heard):
    first = begun("Queueing")
    found = until("Queueing", lambda found: count(found, "skipped") >= 2)
    [waiting] = [at for at, state in found if state == "waiting"]
    assert none_has_begun("Queueing")
    assert found[:2] == [(first, "running"), (waiting, "waiting")]
    go("Queueing")
    assert begun("Queueing") == waiting
    jobs("pause", "Queueing")
    go("Queueing")
    until("Queueing", lambda found: [state for _, state in found[:2]] == ["succeeded"] * 2)


def test_a_time_that_comes_while_a_run_is_at_work_takes_its_place_and_nobody_is_told_of_a_failure(heard):
    first, second = begun("Replacing"), begun("Replacing")
    jobs("pause", "Replacing")
    started = until("Replacing", lambda found: left_of(found)[-1][1] == "running")
    last = left_of(started)[-1][0]
    go("Replacing")
    found = until("Replacing", lambda found: dict(found)[last] == "succeeded")
    assert first < second <= last
    assert {state for at, state in found if at < last} == {"cancelled"}
    assert not [text for text in list(heard.queue) if text.startswith("Replacing") and "failed" in text]


def test_a_run_that_takes_too_long_has_failed_is_told_and_so_is_recovery(heard):
    overrunning = modal.Function.from_name("policies", "Overrunning")
    with pytest.raises(modal.exception.FunctionTimeoutError):
        overrunning.remote("2026-06-01T02:00")
    assert next_of(heard, "Overrunning").startswith("the run for 2026-06-01T02:00:00+02:00 failed: it was broken off")
    assert history("Overrunning") == [("2026-06-01T00:00:00Z", "failed")]
    assert overrunning.remote("2026-06-02T02:00").state == "succeeded"
    assert next_of(heard, "Overrunning") == "the run for 2026-06-02T02:00:00+02:00 succeeded, after failures"
    assert [state for _, state in history("Overrunning")] == ["failed", "succeeded"]


def test_a_paused_job_starts_nothing_and_a_resumed_one_goes_on(heard):
    begun("Often")
    assert jobs("pause", "Often").startswith("Often is paused since 20")
    assert "  paused\n" in jobs("list")
    # a run that had begun ends, and two times come that start none
    found = until("Often", lambda found: [state for _, state in found[-2:]] == ["skipped"] * 2)
    assert {state for _, state in found} - {"missed"} == {"succeeded", "skipped"}  # a busy machine misses seconds
    while not none_has_begun("Often"):
        begun("Often")
    known = found[-1][0]
    found = until("Often", lambda found: sum(at > known for at, _ in found) >= 2)
    assert none_has_begun("Often")
    assert {state for at, state in found if at > known} <= {"skipped", "missed"}
    assert jobs("resume", "Often") == "Often runs\n"
    assert begun("Often") > found[-1][0]
    assert "  paused\n" not in jobs("list").partition("Often  ")[2].partition("next")[0]
    jobs("pause", "Often")


def test_times_that_come_while_the_engine_is_down_are_missed_and_told(modal_forks, tmp_path):
    home = tmp_path / "home"
    with chat() as (webhook, told):
        with LocalEngine(home) as engine:
            deploy(engine, modal_forks, tmp_path, OFTEN, webhook)
            with engine.connected():
                begun("Often")
        threading.Event().wait(3.5)  # the outage, of three nominal times at least
        with LocalEngine(home) as engine, engine.connected():
            while not next_of(told, "Often").startswith("Often was not started for "):
                continue  # of a run that the end of the engine cut off
            jobs("pause", "Often")
            found = history("Often")
    assert count(found, "missed") >= 1
    assert count(found, "succeeded") >= 1
