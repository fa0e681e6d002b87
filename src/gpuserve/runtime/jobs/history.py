"""What became of each time of a job: small files in a volume, of which none is ever changed after its end is in it.

``APP/JOB/DAY/TIME--KIND-ID.jsonl``: one file for a decision of the clock, one a run. A run's file has a line when it
began and one when it ended; each file has one writer, as Modal's volumes ask for, whose last write of a file wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from gpuserve.runtime.jobs.decisions import Started, Trigger
from gpuserve.runtime.jobs.plan import told
from gpuserve.runtime.ports import VolumePort
from gpuserve.runtime.weights.steps import naming_a_full_disk

__all__ = ["History", "OpenRun", "Record", "State", "View"]

State = Literal["queued", "waiting", "skipped", "missed", "running", "succeeded", "failed", "cancelled"]
# How far back runs are looked for that have not ended. Source: our choice; one attempt takes a day at most.
_LOOK_BACK = timedelta(days=3)
_ORDER: tuple[State, ...] = (
    "missed", "skipped", "waiting", "queued", "running", "failed", "cancelled", "succeeded",
)  # fmt: skip
_SINCE, _PAUSED = "since.json", "paused.json"


@dataclass(frozen=True)
class Record:
    """One line of a job's history.

    Attributes:
        nominal: The time that it is about; of several that were missed together, the last.
        state: What became of it.
        at: When that was, in seconds since 1970.
        trigger: Why a run was started.
        attempt: Which try of a run it was.
        fence: The run's number.
        call_id: Modal's function call.
        why: In words.
        count: How many times it is about.
        final: Of a failure: whether it is not tried again.
        began: When the run began.
    """

    nominal: datetime
    state: State
    at: float
    trigger: Trigger = "schedule"
    attempt: int = 0
    fence: int = 0
    call_id: str = ""
    why: str = ""
    count: int = 1
    final: bool = True
    began: float = 0.0

    def told(self) -> dict[str, Any]:
        """As it is written and printed."""
        return {**asdict(self), "nominal": told(self.nominal)}

    @classmethod
    def of(cls, line: dict[str, Any]) -> Record:
        """Read back what `told` gave."""
        return cls(**{**line, "nominal": datetime.fromisoformat(line["nominal"])})


@dataclass(frozen=True)
class View:
    """The present state of a job, as far as its clock needs it.

    Attributes:
        decided: The last time that a clock has decided on.
        unended: Of each time whose run was started and has not ended, the last record.
        waiting: The times that wait for their turn.
        succeeded: Times that have a run that succeeded, among those looked at.
        newest: The last record of a run that ended.
    """

    decided: datetime | None
    unended: tuple[Record, ...]
    waiting: tuple[Started, ...]
    succeeded: frozenset[datetime]
    newest: Record | None


class OpenRun:
    """The file of a run that has begun."""

    def __init__(self, path: Path, begun: Record, volume: VolumePort) -> None:
        self._path, self._begun, self._volume = path, begun, volume

    def end(self, state: State, at: float, *, why: str = "", final: bool = True) -> Record:
        """Write down how it ended."""
        record = replace(self._begun, state=state, at=at, why=why, final=final, began=self._begun.at)
        _write(self._path, record, os.O_APPEND)
        self._volume.commit()
        return record


class History:
    """The files of one job."""

    def __init__(self, root: Path, volume: VolumePort, app: str, job: str) -> None:
        """They lie below *root*, a volume's mount or a folder."""
        self._folder, self._volume = root / quote(app, safe="") / quote(job, safe=""), volume
        self._ended: dict[Path, tuple[Record, ...]] = {}

    def reload(self) -> None:
        """See what others wrote."""
        self._volume.reload()

    def commit(self) -> None:
        """Let others see what was written."""
        self._volume.commit()

    def note(self, record: Record) -> None:
        """Write down a decision; `commit` makes it last."""
        _write(self._path(record), record, os.O_EXCL)

    def begin(self, record: Record) -> OpenRun:
        """Write down that a run begins, and make it last."""
        path = self._path(record)
        _write(path, record, os.O_EXCL)
        self._volume.commit()
        return OpenRun(path, record, self._volume)

    def _path(self, record: Record) -> Path:
        moment = record.nominal.astimezone(UTC)
        stamp = moment.strftime("%Y%m%dT%H%M%S.%fZ")
        kind = "run" if record.state == "running" else record.state
        return self._folder / moment.date().isoformat() / f"{stamp}--{kind}-{secrets.token_hex(6)}.jsonl"

    def of(self, nominal: datetime) -> list[Record]:
        """All that is known of one time, oldest first."""
        moment = nominal.astimezone(UTC)
        return self._by_time(moment.date()).get(moment, [])

    def newest(self, limit: int) -> list[Record]:
        """The last record of each time, the newest time first."""
        found: list[Record] = []
        for day in self._days():
            found += [records[-1] for _, records in sorted(self._by_time(day).items(), reverse=True)]
            if len(found) >= limit:
                break
        return found[:limit]

    def view(self, now: datetime) -> View:
        """What the job's clock must know."""
        decided, newest = None, None
        unended: list[Record] = []
        waiting: list[Started] = []
        succeeded: set[datetime] = set()
        first = (now - _LOOK_BACK).astimezone(UTC).date()
        for day in self._days():
            if day < first and decided is not None:
                break
            for nominal, records in sorted(self._by_time(day).items(), reverse=True):
                last = records[-1]
                by_clock = any(one.trigger in {"schedule", "catch_up"} for one in records)
                decided = nominal if by_clock and (decided is None or nominal > decided) else decided
                if any(one.state == "succeeded" for one in records):
                    succeeded.add(nominal)
                elif last.state in {"queued", "running"} or (last.state in {"failed", "cancelled"} and not last.final):
                    unended.append(last)
                elif last.state == "waiting":
                    waiting.append(Started(nominal, last.trigger))
                ended = [one for one in records if one.state in {"succeeded", "failed"}]
                if ended and (newest is None or ended[-1].at > newest.at):
                    newest = ended[-1]
        return View(decided, tuple(reversed(unended)), tuple(reversed(waiting)), frozenset(succeeded), newest)

    def highest_fence(self) -> int:
        """The largest number that a run of the last days with runs had."""
        found = 0
        for place, day in enumerate(self._days()):
            found = max([found, *(one.fence for one in self._day(day))])
            if found and place > _LOOK_BACK.days:
                break
        return found

    def since(self, schedule: str, now: datetime) -> datetime:
        """From when on the job is in force with this *schedule*; now, if it was another one before."""
        path = self._folder / _SINCE
        with contextlib.suppress(OSError, ValueError, KeyError):
            known = json.loads(path.read_text())
            if known["schedule"] == schedule:
                return datetime.fromisoformat(known["since"])
        _replace(path, {"schedule": schedule, "since": told(now)})
        return now

    @property
    def paused(self) -> str:
        """When the job was paused; empty if it is not."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads((self._folder / _PAUSED).read_text())["at"])
        return ""

    def pause(self, now: datetime) -> None:
        """Start nothing by the clock from now on."""
        _replace(self._folder / _PAUSED, {"at": told(now)})

    def resume(self) -> None:
        """Start what comes due from now on."""
        (self._folder / _PAUSED).unlink(missing_ok=True)

    def prune(self, before: date) -> int:
        """Remove the days before that one; how many."""
        old = [day for day in self._days() if day < before]
        for day in old:
            shutil.rmtree(self._folder / day.isoformat())
        return len(old)

    def _days(self) -> list[date]:
        """The days with records, the newest first."""
        found = []
        if self._folder.is_dir():
            for entry in self._folder.iterdir():
                with contextlib.suppress(ValueError):
                    found.append(date.fromisoformat(entry.name))
        return sorted(found, reverse=True)

    def _by_time(self, day: date) -> dict[datetime, list[Record]]:
        found: dict[datetime, list[Record]] = {}
        for one in self._day(day):
            found.setdefault(one.nominal, []).append(one)
        return {nominal: _without_begun(records) for nominal, records in found.items()}

    def _day(self, day: date) -> list[Record]:
        folder = self._folder / day.isoformat()
        found: list[Record] = []
        if folder.is_dir():
            for path in folder.iterdir():
                found += self._ended.get(path) or self._read(path)
        return sorted(found, key=lambda one: (one.at, _ORDER.index(one.state)))

    def _read(self, path: Path) -> tuple[Record, ...]:
        records = tuple(_records(path))
        if records and records[-1].state != "running":  # nobody will change it
            self._ended[path] = records
        return records


def _without_begun(records: list[Record]) -> list[Record]:
    """A call that has begun to run is queued no more, whatever the clocks of two containers say."""
    begun = {one.call_id for one in records if one.attempt}
    return [one for one in records if one.state != "queued" or one.call_id not in begun]


def _records(path: Path) -> Iterator[Record]:
    with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # cut off by a kill
                yield Record.of(json.loads(line))


def _write(path: Path, record: Record, how: int) -> None:
    view = memoryview((json.dumps(record.told()) + "\n").encode())
    with naming_a_full_disk(path, len(view)):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o644)
        try:
            while view:  # a disk that is nearly full takes a part, and refuses the rest
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    draft.write_text(json.dumps(content))
    draft.replace(path)
