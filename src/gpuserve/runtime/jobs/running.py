"""One run of a job: for one time, by one container, written down before and after."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpuserve.exceptions import LeaseLostError
from gpuserve.runtime.jobs.decisions import Trigger
from gpuserve.runtime.jobs.history import History, Record
from gpuserve.runtime.jobs.plan import JobOutcome, JobPlan, JobRun, parse_time, told
from gpuserve.runtime.lease import DictLease, DictPort, FencedLease, Grant
from gpuserve.runtime.ports import CallPort

__all__ = ["JobPorts", "run_job"]

# How long a clock waits for another that decides on the same job; past it, it decides all the same.
_DECIDING_WAIT_S = 60.0


@dataclass(frozen=True)
class JobPorts:
    """What a job has around it.

    Attributes:
        history: Its files.
        leases: The Dict of its leases.
        calls: Modal's function calls.
        alert: Sends a text of a kind, where alerts were declared.
        clock: Seconds since 1970.
    """

    history: History
    leases: DictPort
    calls: CallPort
    alert: Callable[[str, str], None]
    clock: Callable[[], float] = time.time

    def now(self) -> datetime:
        """The time."""
        return datetime.fromtimestamp(self.clock(), UTC)

    @property
    def lease(self) -> FencedLease:
        """The lease of each time."""
        return FencedLease(self.leases, clock=self.clock)

    @contextmanager
    def deciding(self, plan: JobPlan) -> Iterator[None]:
        """Decide alone on the job's times."""
        with DictLease(self.leases, wait_s=_DECIDING_WAIT_S).hold(f"deciding/{plan.app}/{plan.name}"):
            yield


def run_job(
    plan: JobPlan,
    body: Callable[[JobRun], Any],
    ports: JobPorts,
    *,
    at: str = "",
    trigger: Trigger = "manual",
    force: bool = False,
) -> JobOutcome:
    """Run *body* for one time, unless a run for it succeeded before or is at work.

    Args:
        plan: The job.
        body: The user's code.
        ports: What is around it.
        at: The time, as ISO 8601; empty for the latest that was due.
        trigger: Why it is run.
        force: Run it again although it succeeded: what it did then it does once more, under the same idempotency key.

    Raises:
        JobError: If *at* is no time of the job's.
        LeaseLostError: If another run took over meanwhile.
        Exception: What *body* raised, once that is written down.
    """
    nominal = parse_time(at, plan.schedule, ports.now)
    place, owner = f"{plan.app}/{plan.name}", ports.calls.current() or f"here/{threading.get_ident()}/{ports.clock()}"
    grant = ports.lease.acquire(f"run/{place}/{told(nominal)}", owner)
    if grant is None:
        return JobOutcome("already_running", nominal)
    try:
        ports.history.reload()
        known = ports.history.of(nominal)
        done = next((one for one in known if one.state == "succeeded"), None)
        if done is not None and not force:
            return JobOutcome("already_done", nominal, done.attempt, done.fence)
        fence = ports.lease.next_number(f"fence/{place}", above=ports.history.highest_fence())
        if not ports.lease.is_held(grant):
            raise LeaseLostError(f"{place} at {told(nominal)} was taken over by another run before it began")
        starts = {one.attempt: one for one in known if one.attempt}
        attempt = max(starts, default=0) + 1
        earlier = sum(one.call_id == owner for one in starts.values())
        run = JobRun(plan.app, plan.name, nominal, trigger, attempt, fence)
        value = _recorded(body, ports, run, grant, final=earlier >= plan.retries)
    finally:
        ports.lease.release(grant)
    return JobOutcome("succeeded", nominal, attempt, fence, value)


def _recorded(body: Callable[[JobRun], Any], ports: JobPorts, run: JobRun, grant: Grant, *, final: bool) -> Any:
    before = ports.history.view(ports.now()).newest
    begun = Record(
        run.nominal_time.astimezone(UTC), "running", ports.clock(), run.trigger, run.attempt, run.fence, grant.owner
    )
    file = ports.history.begin(begun)
    try:
        with _renewed(ports.lease, grant, run):
            value = body(run)
        run.check()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        file.end("failed", ports.clock(), why=why, final=final)
        if final:
            ports.alert("failed", f"the run for {run.nominal_time.isoformat()} failed at attempt {run.attempt}: {why}")
        raise
    except BaseException as error:
        # Modal's cancellation and time-out, and a container that is told to leave
        ports.history.reload()
        replaced = any(one.state == "cancelled" for one in ports.history.of(run.nominal_time))
        why = f"it was broken off ({type(error).__name__})"
        file.end("cancelled" if replaced else "failed", ports.clock(), why=why, final=final or replaced)
        if final and not replaced:
            ports.alert("failed", f"the run for {run.nominal_time.isoformat()} failed: {why}")
        raise
    file.end("succeeded", ports.clock())
    if before is not None and before.state == "failed" and before.final:
        ports.alert("recovered", f"the run for {run.nominal_time.isoformat()} succeeded, after failures")
    return value


@contextmanager
def _renewed(lease: FencedLease, grant: Grant, run: JobRun) -> Iterator[None]:
    """Hold the lease for as long as the block runs, and tell the run if it is lost."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease.ttl_s / 3):
            try:
                held = lease.renew(grant)
            except Exception as error:  # noqa: BLE001 (the next try comes before the lease is stale)
                sys.stderr.write(f"gpuserve jobs: the lease could not be renewed: {type(error).__name__}: {error}\n")
            else:
                if not held:
                    run._lost.set()
                    return

    renewal = threading.Thread(target=renew, daemon=True, name="gpuserve-job-lease")
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
