"""The driver: reads windows, keeps batches under way, commits in order. All effects of a run meet here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpuserve.exceptions import AnswerError, BadInputError, BatchRunError, FencedError, GpuserveError
from gpuserve.runtime.batch.committing import Committer
from gpuserve.runtime.batch.events import BatchReport, ItemFailed, OnEvent, Progress, RunFinished, RunStarted
from gpuserve.runtime.batch.folder import OutputFolder
from gpuserve.runtime.batch.ids import KnownIds
from gpuserve.runtime.batch.journal import Journal
from gpuserve.runtime.batch.ledger import End
from gpuserve.runtime.batch.meter import CostMeter, RateMeter
from gpuserve.runtime.batch.rows import AsyncReader, Reader, Row, Source, make_window
from gpuserve.runtime.batch.settings import Settings, Tally
from gpuserve.runtime.batch.shards import ShardWriter
from gpuserve.runtime.batch.target import Target, TargetError
from gpuserve.runtime.batch.trials import DeadLetter, Failure, FailureKind, Trial
from gpuserve.runtime.batch.windows import OpenWindow
from gpuserve.runtime.weights.steps import naming_a_full_disk

__all__ = ["Driver", "Settings"]

_TICK_S = 1.0
_CONTAINERS_EVERY_S = 5.0
# Who has not beaten for so long may have slept (a laptop, SIGSTOP) and been succeeded: it looks before it starts more.
_SUSPICIOUS_S = 2 * _TICK_S
# Source: our choice: more than it takes to part a whole batch of poisoned items down to the first few.
_MOST_FRUITLESS = 64


class Driver:
    """One driver's life: `run` until all is committed, or a limit is reached."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        target: Target,
        folder: OutputFolder,
        writer: ShardWriter,
        on_event: OnEvent,
    ) -> None:
        self._settings, self._source, self._target = settings, source, target
        self._folder, self._on_event = folder, on_event
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="gpuserve-batch-ledger")
        self._input = ThreadPoolExecutor(1, thread_name_prefix="gpuserve-batch-input")
        self._journal = Journal(folder.answers, folder.owner)
        self._ids = KnownIds(folder.ledger / "ids") if settings.has_ids else None
        self._committer = Committer(folder, self._journal, writer, self._ids)
        self._writer = writer
        self._open: dict[int, OpenWindow] = {}
        self._ready: asyncio.PriorityQueue[tuple[int, int, Trial]] = asyncio.PriorityQueue()
        self._sequence = 0
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(settings.max_open)
        self._stopping = asyncio.Event()
        self._reason = ""
        self._ended = False
        self._tally = Tally()
        self._rate = RateMeter()
        self._began = time.monotonic()
        self._away_since: float | None = None
        self._beat_at = self._began
        state = folder.state
        self._cost = CostMeter(target.usd_per_container_hour, state.spent_usd)
        self._worked_before, self._done_before, self._failed_before = state.worked_s, state.done, state.failed
        self._rows_before = state.rows
        self._total = source.total()
        self._fraction: float | None = None

    async def run(self) -> BatchReport:
        """Drive to the end.

        Raises:
            FencedError: If another driver has taken over.
            BadInputError: If the input cannot be used, and that was declared to stop the run.
            DiskFullError: If there is no room for answers or shards.
        """
        try:
            await self._to_its_end()
            report: BatchReport = await self._on_disk(self._leave)
        finally:
            self._disk.shutdown(wait=False)
        self._on_event(RunFinished(report, time.time()))
        return report

    async def _to_its_end(self) -> None:
        try:
            self._tell_start()
            if not self._folder.state.finished:
                await self._drive()
        except BaseException as error:
            with contextlib.suppress(Exception):
                await asyncio.shield(self._on_disk(self._leave_broken, error))
            raise
        finally:
            self._journal.close()
            if self._ids is not None:
                self._input.submit(self._ids.close)  # behind what its thread may still be at
            self._input.shutdown(wait=False)

    def _tell_start(self) -> None:
        state = self._folder.state
        self._on_event(
            RunStarted(
                self._folder.identity()["run_id"], str(self._folder.root), state.epoch > 1, state.epoch, state.done,
                state.failed, self._total, time.time(),
            )
        )  # fmt: skip

    async def _drive(self) -> None:
        workers = [self._work() for _ in range(self._settings.max_outstanding)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one) for one in (self._tick(), *workers)]
                reading = group.create_task(self._read())
                await self._commit_all()
                for task in (*tasks, reading):
                    task.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None

    async def _read(self) -> None:
        state = self._folder.state
        cursor = state.commits[-1].cursor if state.commits else None
        if self._ids is not None:
            await self._on_input(self._ids.load, state.rows)
        reader = await self._on_input(self._source.open, cursor)
        index, position = len(state.commits), state.rows
        try:
            while not self._stopping.is_set():
                await self._slots.acquire()
                rows = await self._rows(reader)
                if not rows:
                    break
                window = await self._on_input(make_window, index, position, rows, reader.cursor())
                await self._opened(OpenWindow(window))
                index, position = index + 1, position + len(rows)
                self._tally.read += len(rows)
                self._fraction = reader.fraction()
            else:
                return
        finally:
            reader.close()
        self._total = position
        self._ended = True
        self._changed.set()

    async def _rows(self, reader: Reader | AsyncReader) -> Sequence[Row]:
        if hasattr(reader, "aread"):
            found: Sequence[Row] = await reader.aread(self._settings.window)
        else:
            found = await self._on_input(reader.read, self._settings.window)
        if self._settings.stop_on_bad_input:
            bad = next((row for row in found if row.fault), None)
            if bad is not None:
                raise BadInputError(bad.where, "", f"{bad.fault} ({bad.fault_type}; on_bad_input='stop')")
        return found

    async def _opened(self, window: OpenWindow) -> None:
        settings = self._settings
        if self._ids is not None:
            doubled = await self._on_input(self._fenced, self._ids.add, window.window)
            for place, (failure) in doubled.items():
                if settings.stop_on_bad_input:
                    item = window.window.items[place]
                    raise BadInputError(item.row.where, "", f"{failure.message} (on_bad_input='stop')")
                window.dead.setdefault(place, DeadLetter(place, 0, failure))
        restored = await self._on_disk(self._journal.restore, window)
        self._tally.answered += len(window.answers)
        self._tally.failed += len(window.dead)
        if restored:
            self._rate = RateMeter()
        trials = await self._on_input(
            lambda: window.plan(
                settings.cost, max_items=settings.max_items, max_cost=settings.max_cost, padded=settings.padded
            )
        )
        self._open[window.window.index] = window
        for trial in trials:
            self._queue(trial)
        self._changed.set()

    def _queue(self, trial: Trial) -> None:
        self._sequence += 1
        self._ready.put_nowait((trial.window, self._sequence, trial))

    async def _work(self) -> None:
        while not _is_cancelled():
            _, _, trial = await self._ready.get()
            if self._stopping.is_set():
                continue
            window = self._open[trial.window]
            if time.monotonic() - self._beat_at > _SUSPICIOUS_S:
                await self._on_disk(self._folder.require_mine)
            self._tally.outstanding += 1
            try:
                answers = await self._target.call(window.inputs(trial))
            except TargetError as error:
                await self._failed(window, trial, error.failure)
            else:
                self._away_since = None
                await self._answered(window, trial, answers)
            finally:
                self._tally.outstanding -= 1
                self._changed.set()

    async def _answered(self, window: OpenWindow, trial: Trial, answers: Sequence[Any]) -> None:
        try:
            for answer in answers:
                self._writer.check(answer)
            await self._on_disk(self._journal.answered, window, trial.places, answers)
        except AnswerError as error:
            await self._failed(window, trial, Failure(FailureKind.RAISED, "AnswerError", str(error)))
            return
        self._tally.answered += len(window.answer(trial, answers))
        self._tally.fruitless = 0

    async def _failed(self, window: OpenWindow, trial: Trial, failure: Failure) -> None:
        lost = failure.kind is FailureKind.LOST
        self._away_since = (self._away_since or time.monotonic()) if lost else None
        trials, dead = window.fail(trial, failure, self._settings.retries)
        for letter in dead:
            await self._on_disk(self._journal.gave_up, window, letter)
            self._tally.failed += 1
            item = window.window.items[letter.place]
            told = (item.id, item.position, item.row.where, failure.error_type, failure.message, letter.attempts)
            self._on_event(ItemFailed(*told, time.time()))
        self._tally.retries += len(trials)
        self._give_up_if_fruitless(failure)
        for again in trials:
            if again.delay_s:
                asyncio.get_running_loop().call_later(again.delay_s, self._queue, again)
            else:
                self._queue(again)

    async def _commit_all(self) -> None:
        while True:
            self._changed.clear()
            index = len(self._folder.state.commits)
            window = self._open.get(index)
            if window is not None and window.settled:
                event = await self._on_disk(self._committer.commit, window, self._cost.spent_usd, self._worked())
                del self._open[index]
                self._slots.release()
                self._on_event(event)
                continue
            if self._ended and not self._open:
                return
            if self._stopping.is_set() and not self._tally.outstanding:
                return
            await self._changed.wait()

    async def _tick(self) -> None:
        asked_at = -_CONTAINERS_EVERY_S
        containers: int | None = None
        while not _is_cancelled():
            now = time.monotonic()
            if now - asked_at >= _CONTAINERS_EVERY_S:
                asked_at, containers = now, await self._target.containers()
                if containers is not None:
                    self._away_since = None
            self._cost.tick(time.monotonic(), containers)
            await self._on_disk(self._beat)
            self._beat_at = time.monotonic()
            self._tell_progress()
            self._check_limits()
            if self._stopping.is_set():
                self._changed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await asyncio.Event().wait()  # nothing but time

    def _beat(self) -> None:
        self._folder.require_mine()
        self._folder.heartbeat()
        self._journal.sync()

    def _check_limits(self) -> None:
        settings, now = self._settings, time.monotonic()
        if settings.max_usd is not None and self._cost.spent_usd >= settings.max_usd:
            self.stop("budget")
        if settings.deadline_s is not None and now - self._began >= settings.deadline_s:
            self.stop("deadline")
        if self._away_since is not None and now - self._away_since > settings.patience_s:
            self.stop("unreachable")

    def _give_up_if_fruitless(self, failure: Failure) -> None:
        """A target that has never answered anything is broken, and not its items."""
        counts = failure.kind in {FailureKind.RAISED, FailureKind.DIED}
        if not counts or self._tally.answered or self._done_before:
            return
        self._tally.fruitless += 1
        if self._tally.fruitless >= _MOST_FRUITLESS:
            said = f"{failure.error_type}: {failure.message}"
            raise BatchRunError(
                f"{self._target.name} has answered none of {_MOST_FRUITLESS} batches; the last one ended with {said}. "
                f"Mend it, and run the same again. Its traceback:\n{failure.traceback}"
            )

    def stop(self, reason: str) -> None:
        """Begin no more batches, take in what is under way, and leave."""
        if not self._stopping.is_set():
            self._reason = reason
            self._stopping.set()
            self._changed.set()

    def _tell_progress(self) -> None:
        now, tally = time.monotonic(), self._tally
        done, failed = self._done_before + tally.answered, self._failed_before + tally.failed
        rate = self._rate.tick(now, tally.answered + tally.failed)
        read = self._rows_before + tally.read
        total = self._total
        if total is None and self._fraction:
            total = max(read, round(read / self._fraction))
        left = total - done - failed if total is not None else None
        elapsed = now - self._began
        tally.throughput.append((round(elapsed, 3), tally.answered))
        cost = self._cost.spent_usd if self._cost.usd_per_container_hour is not None else None
        self._on_event(
            Progress(
                done, failed, read, total, tally.outstanding, rate, left / rate if left is not None and rate else None,
                cost, self._cost.containers, tally.retries, elapsed, time.time(),
            )
        )  # fmt: skip

    def _worked(self) -> float:
        return self._worked_before + time.monotonic() - self._began

    def _leave(self) -> BatchReport:
        folder = self._folder
        try:
            if not folder.state.finished:
                self._cost.tick(time.monotonic(), None)
                total = self._total if self._ended else None
                folder.end(End(folder.owner, self._reason, total, self._cost.spent_usd, self._worked(), time.time()))
            if folder.state.finished:
                self._committer.write_manifest()
        finally:
            folder.leave()
        tally = self._tally
        self._tell_progress()
        cost = self._cost.spent_usd if self._cost.usd_per_container_hour is not None else None
        return self._committer.report(
            reason=self._reason,
            total=self._total if self._ended else (folder.state.end.total if folder.state.end else None),
            elapsed_s=time.monotonic() - self._began,
            done_here=folder.state.done - self._done_before,
            cost_usd=cost,
            retries=tally.retries,
            throughput=tuple(tally.throughput),
        )

    def _leave_broken(self, error: BaseException) -> None:
        reason = "interrupted" if not isinstance(error, GpuserveError) else f"{type(error).__name__}: {error}"
        folder = self._folder
        try:
            if not isinstance(error, FencedError):
                folder.end(End(folder.owner, reason, None, self._cost.spent_usd, self._worked(), time.time()))
        finally:
            folder.leave()  # also where the end cannot be written: the disk may be what is full

    async def _on_disk(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, self._fenced, function, *args)

    def _fenced(self, function: Callable[..., Any], *args: Any) -> Any:
        """A file that is gone under a driver that was succeeded means just that."""
        try:
            with naming_a_full_disk(self._folder.root, 1 << 16):
                return function(*args)
        except FileNotFoundError:
            self._folder.require_mine()
            raise

    async def _on_input(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._input, function, *args)


def _is_cancelled() -> bool:
    """Whether this task was to end: a target may have made an error of its own, or an answer, of the cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, of several tasks that ended together."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
