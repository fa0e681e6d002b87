"""One attempt at a run: taken up at its newest checkpoint, ended with the run or with another checkpoint."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gpuserve.exceptions import DivergedError, TrainingError
from gpuserve.runtime.ports import VolumePort
from gpuserve.runtime.training.attempts import AttemptClock, Interruption
from gpuserve.runtime.training.checkpoints import CheckpointStore
from gpuserve.runtime.training.publish import export, promote, publish
from gpuserve.runtime.training.report import TrainingReport, page
from gpuserve.runtime.training.rows import Rows, checked_rows, held_back, read_rows
from gpuserve.runtime.training.tracking import Tracker, opened
from gpuserve.runtime.weights.manifest import LARGEST_MANIFEST, strict_json
from gpuserve.runtime.weights.steps import naming_a_full_disk, read_plain, sync_folder, write_new
from gpuserve.runtime.weights.store import WeightsStore
from gpuserve.specs.training import RUN, TrainingDeclaration

if TYPE_CHECKING:
    from gpuserve.runtime.training.sft import SftSession

__all__ = ["Attempt", "Hooks", "Places"]

_IDENTITY, _RESULT, _REPORT, _PAGE = "run.json", "result.json", "report.json", "report.html"


class Hooks(Protocol):
    """What is called on a user's job."""

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """Rows to learn from."""

    def evaluation_rows(self) -> Iterable[Mapping[str, Any]] | None:
        """Rows to evaluate on."""

    def metrics(self, model: Any, tokenizer: Any) -> Mapping[str, float]:
        """Metrics beside those of the evaluation."""


@dataclass(frozen=True)
class Places:
    """Where an attempt finds and leaves things.

    Attributes:
        runs: The folder of all runs.
        runs_volume: Committed after each checkpoint.
        adapters: What is published.
        adapters_volume: Committed after a publication and a promotion.
        base: Gives the verified folder of the base.
    """

    runs: Path
    runs_volume: VolumePort
    adapters: WeightsStore
    adapters_volume: VolumePort
    base: Callable[[], Path]


@dataclass
class Attempt:
    """One attempt.

    Args:
        hooks: The user's job.
        declaration: What it declares.
        run: The run's name.
        places: Where things are.
        timeout_s: Seconds that it may take; ``inf`` where nothing ends it.
        say: Told of each event.
    """

    hooks: Hooks
    declaration: TrainingDeclaration
    run: str
    places: Places
    timeout_s: float = float("inf")
    say: Callable[[Mapping[str, Any]], None] = lambda event: _print(event)  # noqa: PLW0108 (defined below)
    _report: TrainingReport = field(init=False)

    def __post_init__(self) -> None:
        """Refuse a name that is no folder's.

        Raises:
            TrainingError: If it is none.
        """
        if not isinstance(self.run, str) or not re.fullmatch(RUN, self.run):
            raise TrainingError(f"run got {self.run!r}; write letters, digits, dots, dashes, as in '2026-11-25'")
        self._began = time.monotonic()
        self._folder = self.places.runs / self.declaration.name / self.run
        self._report = TrainingReport(self.declaration.name, self.run, "continued", 0, 0)
        self._trackers: list[Tracker] = []

    def work(self) -> TrainingReport:
        """Go on with the run until it ends or the attempt must; a run that is over is only told of.

        Raises:
            TrainingError: If it cannot begin or go on.
            DiskFullError: If there is no room; the checkpoints are whole.
            KeyboardInterrupt: After the checkpoint, if the container is to go; Modal's cancellation, if the call is.
        """
        self.places.runs_volume.reload()
        self.places.adapters_volume.reload()
        if (self._folder / _RESULT).is_file():
            return TrainingReport.from_json((self._folder / _RESULT).read_text())
        store = CheckpointStore(self._folder, self, keep=self.declaration.keep_checkpoints, on_fault=self._passed_by)
        with naming_a_full_disk(self.places.runs, 0):
            self._folder.mkdir(parents=True, exist_ok=True)
        store.prepare()
        train, evaluation = self._rows()
        self._identified(train, evaluation)
        number = self._counted()
        # torch, transformers and trl are imported here and not before: refusals above come without them
        from gpuserve.runtime.training.sft import SftSession

        clock = AttemptClock(self._began, self.timeout_s, self.declaration.stop_before_s)
        in_container = os.environ.get("MODAL_IS_REMOTE") == "1"
        with (
            Interruption(patient=in_container) as interruption,
            tempfile.TemporaryDirectory(prefix="gpuserve-sft-") as scratch,
        ):
            session = SftSession(
                self.declaration,
                self.places.base(),
                train,
                evaluation,
                store=store,
                clock=clock,
                interruption=interruption,
                scratch=Path(scratch),
                on_log=self._logged,
            )
            resume = store.newest()
            done = resume.step if resume is not None else 0
            self._report = replace(self._report, step=done, steps=session.steps, attempts=number)
            self._session, self._from = session, done
            self.say({"event": "training", "run": self.run, "attempt": number, "from": done, "steps": session.steps})
            self._trackers = self._opened(train, evaluation)
            try:
                whole = session.train(resume)
            except DivergedError as error:
                return self._diverged(error)
            self._report = replace(self._report, step=session.step, history=session.history)
            if whole:
                return self._finished(session, store, evaluation)
            self._end("continued")
            interruption.give_way()
            return self._report

    def commit(self) -> None:
        """The volume's commit, after a checkpoint, with the report of that moment beside it."""
        if hasattr(self, "_session"):
            self._report = replace(self._report, step=self._session.step, history=self._session.history)
            self._write_report()
        self.places.runs_volume.commit()

    def reload(self) -> None:
        """The volume's."""
        self.places.runs_volume.reload()

    def _rows(self) -> tuple[Rows, Rows | None]:
        declared = self.declaration
        where = str(declared.dataset) if declared.dataset is not None else "rows()"
        train = checked_rows(self.hooks.rows(), declared.loss, where=where)
        if isinstance(declared.evaluation, float):
            return held_back(train, declared.evaluation, seed=declared.seed, where=where)
        if declared.evaluation is not None:
            given: Iterable[Any] | None = read_rows(declared.evaluation)
        else:
            given = self.hooks.evaluation_rows()
        if given is None:
            return train, None
        return train, checked_rows(given, declared.loss, where=str(declared.evaluation or "evaluation_rows()"))

    def _identified(self, train: Rows, evaluation: Rows | None) -> None:
        """See that it is the run that was begun: with other rows or numbers, its checkpoints mean nothing."""
        mine = {**self.declaration.identity, "rows": train.digest, "rows to evaluate on": _digest(evaluation)}
        path = self._folder / _IDENTITY
        if not path.is_file():
            path.unlink(missing_ok=True)
            temporary = self._folder / "incomplete" / "run.json"
            with naming_a_full_disk(self._folder, 0):
                write_new(temporary, json.dumps(mine, indent=1, sort_keys=True).encode() + b"\n")
                temporary.replace(path)
                sync_folder(self._folder)
            return
        theirs = strict_json(read_plain(path, _IDENTITY, LARGEST_MANIFEST), _IDENTITY)
        other = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
        if other:
            raise TrainingError(
                f"the run {self.run} was begun with another {', '.join(other)}; its checkpoints do not fit. "
                f"Begin a new one: run='…', or put back what was changed"
            )

    def _counted(self) -> int:
        """The attempt's number; one file each, so that two never have the same."""
        folder = self._folder / "attempts"
        with naming_a_full_disk(self._folder, 0):
            folder.mkdir(exist_ok=True)
            number = len(list(folder.iterdir())) + 1
            if number > self.declaration.max_attempts:
                raise TrainingError(
                    f"the run {self.run} had its {self.declaration.max_attempts} attempts and is not finished; "
                    f"raise max_attempts, or timeout_s"
                )
            write_new(folder / f"{number:05}.json", json.dumps({"at": time.time()}).encode() + b"\n")
        return number

    def _opened(self, train: Rows, evaluation: Rows | None) -> list[Tracker]:
        told = self.declaration.model_dump(
            mode="json",
            include={"seed", "batch_size", "gradient_accumulation", "learning_rate", "schedule", "max_length", "loss"},
        )
        lora = self.declaration.lora
        parameters = {
            **told,
            "base": str(self.declaration.base.source),
            "lora.rank": lora.rank,
            "lora.alpha": lora.alpha,
            "dataset_size": len(train),
            "evaluation_size": len(evaluation) if evaluation is not None else 0,
            "steps": self._report.steps,
        }
        return opened(
            self.declaration.tracking,
            name=self.declaration.name,
            run=self.run,
            parameters=parameters,
            folder=self._folder / "wandb",
        )

    def _logged(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        told = {key: metrics[key] for key in ("loss", "eval_loss", "grad_norm", "learning_rate") if key in metrics}
        if told:
            done = max(1, step - self._from)
            left = (steps - step) * (time.monotonic() - self._began) / done
            self.say({"event": "training", "run": self.run, "step": step, "steps": steps, **told, "eta_s": round(left)})
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def _passed_by(self, name: str, reason: str) -> None:
        self.say({"event": "training", "run": self.run, "checkpoint": name, "not_used": reason})

    def _finished(self, session: SftSession, store: CheckpointStore, evaluation: Rows | None) -> TrainingReport:
        last = store.newest()
        if last is None or last.step < session.steps:
            raise TrainingError(f"the last checkpoint of {self.run} cannot be read back; run it again to write it anew")
        evaluated_on = _evaluated_on(self.declaration, evaluation)

        def measured() -> dict[str, float]:
            own = self.hooks.metrics(session.model, session.tokenizer)
            return {**session.evaluate(), **{key: float(value) for key, value in own.items()}}

        def measured_with(adapter: Path) -> Mapping[str, float]:
            with session.running_with(adapter):
                return measured()

        metrics = measured()
        name, base = self.declaration.name, _base_name(self.declaration)
        adapter = export(last.path, self._folder / "adapter", base=base)
        snapshot = publish(self.places.adapters, self.places.adapters_volume, adapter, name=name, base=base)
        outcome = promote(
            self.places.adapters,
            self.places.adapters_volume,
            snapshot,
            name=name,
            gates=self.declaration.gate,
            metrics=metrics,
            evaluated_on=evaluated_on,
            measure=measured_with,
        )
        self._report = replace(
            self._report,
            state="finished",
            metrics=metrics,
            served_metrics=dict(outcome.served_metrics),
            adapter=snapshot,
            promoted=outcome.promoted,
            reason=outcome.reason,
            served=outcome.served,
        )
        for tracker in self._trackers:
            tracker.log(session.steps, {f"final/{key}": value for key, value in metrics.items()})
        return self._end("finished")

    def _diverged(self, error: DivergedError) -> TrainingReport:
        self._report = replace(
            self._report,
            step=error.step,
            state="diverged",
            reason=str(error),
            quantity=error.quantity,
            kept=error.kept,
            history=self._session.history,
        )
        return self._end("diverged")

    def _end(self, state: Literal["finished", "continued", "diverged"]) -> TrainingReport:
        files = self._write_report()
        for tracker in self._trackers:
            tracker.finish(state, files)
        if state != "continued":
            _replace(self._folder / _RESULT, self._report.to_json())
        self.places.runs_volume.commit()
        self.say({"event": "training", "run": self.run, "state": state, "step": self._report.step,
                  "promoted": self._report.promoted, "reason": self._report.reason})  # fmt: skip
        return self._report

    def _write_report(self) -> list[Path]:
        files = [self._folder / _REPORT, self._folder / _PAGE]
        with naming_a_full_disk(self._folder, 0):
            for path, text in zip(files, (self._report.to_json(), page(self._report)), strict=True):
                _replace(path, text)
        return files


def _replace(path: Path, text: str) -> None:
    """Write a file anew in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    write_new(temporary, text.encode())
    temporary.replace(path)


def _digest(rows: Rows | None) -> str:
    return rows.digest if rows is not None else ""


def _evaluated_on(declaration: TrainingDeclaration, evaluation: Rows | None) -> str:
    """What makes two evaluations one measurement: the rows, and how they are read."""
    if evaluation is None:
        return ""
    told = [evaluation.digest, declaration.max_length, declaration.chat_template, declaration.loss]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _base_name(declaration: TrainingDeclaration) -> str:
    source = declaration.base.source
    return str(getattr(source, "repo", "") or getattr(source, "name", ""))


def _print(event: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()
