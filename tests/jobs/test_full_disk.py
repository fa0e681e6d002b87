"""A job on a full disk: told as such, begun only when that is written down, done again only if it failed."""

import contextlib
from datetime import UTC, datetime

import pytest

import gpuserve
from gpuserve.runtime.jobs.history import History
from gpuserve.runtime.jobs.plan import JobPlan
from gpuserve.runtime.jobs.running import JobPorts, run_job
from gpuserve.runtime.lease import LocalEntries
from gpuserve.runtime.ports import PlainFolder

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
PLAN = JobPlan("reports", "Nightly", schedule=gpuserve.Schedule.cron("0 * * * *"), clock="tick")


class NoCalls:
    """A run that no call began."""

    def current(self):
        return ""


@pytest.fixture
def disk(small_disk):
    return small_disk("64k")


def fill(disk):
    with contextlib.suppress(OSError), (disk / "ballast").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def run(disk, body):
    """As a container would that has just started: it knows what is on the disk."""
    history = History(disk / "jobs", PlainFolder(), "reports", "Nightly")
    ports = JobPorts(history, LocalEntries(), NoCalls(), lambda _kind, _text: None, clock=NOON.timestamp)
    return run_job(PLAN, body, ports, at="2026-06-01T12:00"), history


def test_a_run_that_cannot_be_written_down_does_not_begin(disk):
    ran = []
    fill(disk)
    with pytest.raises(gpuserve.DiskFullError, match=f"no room at {disk}"):
        run(disk, ran.append)
    assert ran == []

    (disk / "ballast").unlink()
    outcome, history = run(disk, ran.append)
    assert (outcome.state, outcome.attempt, len(ran)) == ("succeeded", 1, 1)
    assert [one.state for one in history.newest(9)] == ["succeeded"]


def test_a_run_whose_end_found_no_room_is_tried_again_under_the_same_key(disk):
    keys = []

    def fails_at_length(run):
        keys.append(run.idempotency_key)
        fill(disk)
        raise ValueError("no data " * 4096)  # more than what is left of the file's last block

    with pytest.raises(gpuserve.DiskFullError) as full:
        run(disk, fails_at_length)
    assert isinstance(full.value.__context__.__context__, ValueError), "what the run raised is told as well"

    (disk / "ballast").unlink()
    outcome, history = run(disk, lambda run: keys.append(run.idempotency_key))
    assert (outcome.state, outcome.attempt) == ("succeeded", 2)
    assert keys == ["reports/Nightly/2026-06-01T12:00:00Z"] * 2
    assert [one.state for one in history.of(NOON)] == ["running", "running", "succeeded"]
