"""Runs that stop before their end: by a deadline, by a budget, or because the target is broken, gone or unknown."""

import asyncio
import importlib.util
import json
import threading
from pathlib import Path

import modal
import pytest

import gpuserve
from gpuserve.engine import LocalEngine
from gpuserve.runtime.batch.drive import Driver
from gpuserve.runtime.batch.events import BatchCommitted, Progress
from gpuserve.runtime.batch.folder import OutputFolder
from gpuserve.runtime.batch.rows import Fields
from gpuserve.runtime.batch.settings import Settings
from gpuserve.runtime.batch.shards import writer_of
from gpuserve.runtime.batch.sources.iterables import ItemsSource
from gpuserve.runtime.batch.target import TargetError
from gpuserve.runtime.batch.trials import Failure, FailureKind, RetryPolicy

spec = importlib.util.spec_from_file_location("mapped", Path(__file__).with_name("mapped.py"))
mapped = importlib.util.module_from_spec(spec)  # tests are no package
spec.loader.exec_module(mapped)

QUICK = gpuserve.MapRetries(initial_delay_s=0, patience_s=1)
ONE_BY_ONE = gpuserve.MapBatching(window=4, max_items=2, max_outstanding=1)


class Held:
    """Answers one batch, and holds the next until the run has told of its progress twice more."""

    def __init__(self):
        self._calls = 0
        self._told = threading.Semaphore(0)

    def __call__(self, batch):
        self._calls += 1
        for _ in range(2 if self._calls == 2 else 0):
            assert self._told.acquire(timeout=60)
        return batch

    def heard(self, event):
        if isinstance(event, Progress) and self._calls > 1:
            self._told.release()


def rows(folder):
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("reason", "limits"),
    [("deadline", {"deadline_s": 0.1}), ("budget", {"max_usd": 0.001, "usd_per_container_hour": 3600})],
)
def test_a_run_stops_at_its_limit_with_what_it_has_and_the_same_command_goes_on(tmp_path, reason, limits):
    held = Held()

    def run(**limited):
        mapper = gpuserve.BatchMapper(
            target=held, source=range(20), output=tmp_path / "out", batching=ONE_BY_ONE, name="limited", **limited
        )
        return mapper, mapper.run(on_event=held.heard)

    mapper, stopped = run(**limits)

    assert (stopped.status, stopped.reason) == ("stopped", reason)
    assert stopped.done == 4  # what was under way is taken in; nothing more was begun
    assert "again" in stopped.how_to_go_on
    assert (mapper.status().state, len(rows(tmp_path / "out"))) == ("stopped", 4)

    _, report = run()

    assert (report.status, report.reason, report.done) == ("finished", "", 20)
    assert rows(tmp_path / "out") == [{"id": number, "output": number} for number in range(20)]


def test_a_budget_is_of_the_output_and_not_of_each_driver(tmp_path):
    asked = []

    def run(most):
        return gpuserve.BatchMapper(
            target=lambda batch: asked.append(batch) or batch,
            source=range(100_000),
            output=tmp_path / "out",
            batching=gpuserve.MapBatching(window=100, max_items=1),
            max_usd=most,
            usd_per_container_hour=3600,
        ).run()

    first = run(0.5)
    calls = len(asked)
    again = run(0.5)

    assert (first.reason, again.reason) == ("budget", "budget")
    assert 0 < first.done < 100_000
    assert first.cost_usd >= 0.5
    assert again.cost_usd - first.cost_usd < 0.5
    assert len(asked) - calls < calls


def test_a_target_that_never_answers_is_called_broken_before_all_is_given_up(tmp_path):
    broken = [True]

    def answer(batch):
        if broken[0]:
            raise LookupError("no model")
        return batch

    mapper = gpuserve.BatchMapper(target=answer, source=range(5000), output=tmp_path / "out", retries=QUICK)
    with pytest.raises(gpuserve.BatchRunError, match=r"answered none of 64 batches; .* LookupError: no model"):
        mapper.run()
    assert (mapper.status().state, mapper.status().done) == ("stopped", 0)
    broken[0] = False

    report = mapper.run()

    assert report.status == "finished"
    assert report.done + report.failed == 5000
    assert report.failed < 64  # what was given up before the target was mended stays so, and can be retried


class Deaf:
    """Makes a failure of its own of its cancellation, as modal's client does where its connection is lost just then."""

    name, usd_per_container_hour = "deaf", None

    def __init__(self):
        self.called = asyncio.Event()

    async def call(self, _batch):
        self.called.set()
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TargetError(Failure(FailureKind.LOST, "ConnectionError", "lost")) from None

    async def containers(self):
        return None


def test_a_driver_that_was_succeeded_ends_also_where_its_target_does_not_heed_being_cancelled(tmp_path):
    source = ItemsSource(range(20), Fields(None, None), "numbers")
    retries = RetryPolicy()
    settings = Settings(5, 5, None, padded=False, cost=lambda _: 1.0, max_outstanding=2, retries=retries)

    async def succeeded():
        folder, target = OutputFolder(tmp_path / "out"), Deaf()
        folder.take({"run": "one"})
        running = asyncio.ensure_future(
            Driver(settings, source, target, folder, writer_of("jsonl"), lambda _event: None).run()
        )
        await target.called.wait()
        second = OutputFolder(tmp_path / "out")
        second.take({"run": "one"}, takeover=True)
        try:
            await asyncio.wait_for(running, 60)
        finally:
            second.leave()

    with pytest.raises(gpuserve.FencedError):
        asyncio.run(succeeded())


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with LocalEngine(tmp_path_factory.mktemp("s") / "home") as running, running.connected():
        mapped.app.deploy()
        yield running


def mapper_of(name, folder, items, **options):
    return gpuserve.BatchMapper(
        target=modal.Function.from_name("mapped", name), source=items, output=folder, retries=QUICK, **options
    )


@pytest.mark.usefixtures("engine")
def test_an_error_of_the_targets_own_code_is_the_items_fault_even_if_it_looks_like_the_networks(tmp_path):
    texts = ["text 1", "raise ConnectionError", "raise FileNotFoundError"]
    report = mapper_of("digests", tmp_path / "out", texts).run()

    assert (report.status, report.done, report.failed) == ("finished", 1, 2)
    letters = [json.loads(line) for line in (tmp_path / "out/dead-letters.jsonl").read_text().splitlines()]
    assert [one["error_type"] for one in letters] == ["ConnectionError", "FileNotFoundError"]
    assert all("in digests" in one["traceback"] for one in letters)


@pytest.mark.usefixtures("engine")
def test_a_target_that_does_not_exist_is_told_at_once(tmp_path):
    with pytest.raises(gpuserve.BatchRunError, match=r"cannot be called: .*deploy its app"):
        mapper_of("digest", tmp_path / "out", ["text 1"]).run()


def test_a_run_stops_when_modal_is_out_of_reach_for_longer_than_was_declared(engine, tmp_path):
    texts = [f"text {number}" for number in range(40)]

    def told(event):
        if isinstance(event, BatchCommitted) and event.window == 2:
            engine.close()

    stopped = mapper_of("digests", tmp_path / "out", texts, batching=ONE_BY_ONE).run(on_event=told)

    assert (stopped.status, stopped.reason) == ("stopped", "unreachable")
    assert 12 <= stopped.done < 40
    with LocalEngine(engine.home) as again, again.connected():
        report = mapper_of("digests", tmp_path / "out", texts, batching=ONE_BY_ONE).run()
        assert (report.status, report.done) == ("finished", 40)
