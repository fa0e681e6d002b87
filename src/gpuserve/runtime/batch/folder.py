"""The output folder: the ledger's file, files that are given their names, and who may write.

```
OUT/
  part-000000.jsonl …    committed output, in input order
  dead-letters.jsonl     items that were given up, with input, error and attempts
  manifest.json          once all is settled: every file with its sha256
  ledger/run.json        what run this is
  ledger/log             the ledger
  ledger/driver.json     who drives, renewed every second
  ledger/ids             16 bytes an item, where ids are declared, to find one that comes twice
  answers/               answers of windows that are not committed yet
  incomplete/            files that are being written
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuserve.exceptions import BatchBusyError, BatchRunError, FencedError, OutputMismatchError
from gpuserve.runtime.batch.frames import json_frame, json_frames_in
from gpuserve.runtime.batch.ledger import Begin, Commit, End, LedgerState, PublishedFile, folded, record_of, written
from gpuserve.runtime.weights.steps import naming_a_full_disk, sync_file, sync_folder

__all__ = ["TAKEOVER_AFTER_S", "OutputFolder", "driver_name", "is_driven"]

# A driver that has not been heard of for so long may be succeeded. Source: our choice; it is heard of once a second.
TAKEOVER_AFTER_S = 10.0
_NOT_BUSY = "TtXxZ"
_MOST_TOLD = 200


def driver_name() -> str:
    """This process, for people."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


class OutputFolder:
    """One run's folder, read by anyone, written by one driver."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger, self.answers, self.incomplete = root / "ledger", root / "answers", root / "incomplete"
        self.state = LedgerState()
        self.owner = ""
        self._log = self._dead = -1
        self._read = 0

    @property
    def exists(self) -> bool:
        """Whether there is a run here."""
        return (self.ledger / "run.json").is_file()

    def identity(self) -> dict[str, Any]:
        """What run this is.

        Raises:
            BatchRunError: If there is none, or it cannot be read.
        """
        try:
            found: dict[str, Any] = json.loads((self.ledger / "run.json").read_text())
        except FileNotFoundError:
            raise BatchRunError(f"{self.root} holds no run; gpuserve batch run begins one") from None
        except (OSError, ValueError) as error:
            raise BatchRunError(f"{self.ledger / 'run.json'} cannot be read: {error}; give another folder") from error
        return found

    def load(self) -> LedgerState:
        """Read what was appended since the last time."""
        try:
            with (self.ledger / "log").open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return self.state
        records, begin = [], self._read
        for position, values in json_frames_in(data):
            self._read = begin + position
            record = record_of(values)
            if record is not None:
                records.append(record)
        self.state = folded(records, self.state)
        return self.state

    def take(self, identity: dict[str, Any], *, takeover: bool = False) -> LedgerState:
        """Become the driver.

        Args:
            identity: What run this is to be.
            takeover: Do not ask whether another driver is alive.

        Raises:
            OutputMismatchError: If the folder belongs to another run.
            BatchBusyError: If another driver is at work.
            DiskFullError: If there is no room.
        """
        with naming_a_full_disk(self.root, 1 << 20):
            for folder in (self.root, self.ledger, self.answers, self.incomplete):
                folder.mkdir(parents=True, exist_ok=True)
            self._claim_folder(identity)
            if not takeover:
                self._refuse_if_busy()
            self.owner = secrets.token_hex(8)
            try:
                self._become_driver()
            except BaseException:
                self._let_go()
                raise
        return self.state

    def _become_driver(self) -> None:
        self._log = os.open(self.ledger / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        sync_folder(self.ledger)
        self._append(Begin(self.owner, driver_name(), time.time()))
        self.heartbeat()
        self.begun()
        self.require_mine()
        self._roll_forward()

    def begun(self) -> None:
        """The ledger names this driver; a folder that is shared otherwise than by a file system says so there too."""

    def share(self) -> None:
        """Let others see what was committed; a folder of this machine hides nothing."""

    def _claim_folder(self, identity: dict[str, Any]) -> None:
        run = self.ledger / "run.json"
        if not self.exists:
            temporary = self.incomplete / f"run-{secrets.token_hex(4)}"
            temporary.write_text(json.dumps({"run_id": secrets.token_hex(8), **identity}, indent=1, sort_keys=True))
            sync_file(temporary)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, run)
            temporary.unlink()
            sync_folder(self.ledger)
            sync_folder(self.root)
        found = self.identity()
        differs = sorted(name for name in identity if found.get(name) != identity[name])
        if differs:
            told = "; ".join(
                f"its {name} is {_short(found.get(name))}, and not {_short(identity[name])}" for name in differs
            )
            raise OutputMismatchError(
                f"{self.root} belongs to another run: {told}. Give this run another folder, declare what that one "
                f"declared to go on with it, or remove the folder to begin anew"
            )

    def _refuse_if_busy(self) -> None:
        # a driver that was succeeded and wakes up may renew the note once: it is the ledger's word that counts
        driver = is_driven(self.ledger / "driver.json", owner=self.load().owner)
        if driver:
            raise BatchBusyError(
                f"{self.root} is driven by {driver}; wait for it, end it, or take the run over: takeover=True, after "
                f"which that one commits nothing more"
            )

    def heartbeat(self) -> None:
        """Say that this driver lives."""
        about: dict[str, Any] = {"driver": driver_name(), "owner": self.owner, "pid": os.getpid(), "at": time.time()}
        about["process"] = _process(os.getpid())
        temporary = self.incomplete / f"driver-{self.owner}"
        temporary.write_text(json.dumps(about))
        temporary.replace(self.ledger / "driver.json")

    def leave(self) -> None:
        """Let go of the ledger."""
        self._let_go()

    def _let_go(self) -> None:
        if self._log < 0:
            return
        for descriptor in (self._log, self._dead):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._dead = -1
        with contextlib.suppress(OSError, ValueError):
            path = self.ledger / "driver.json"
            if json.loads(path.read_text()).get("owner") == self.owner:
                path.unlink()

    def require_mine(self) -> None:
        """Go on only as the driver.

        Raises:
            FencedError: If another one has taken the run over.
        """
        state = self.load()
        if state.owner != self.owner:
            raise FencedError(
                f"{self.root} was taken over by {state.driver} while this driver ({driver_name()}) stood still; "
                f"nothing of this one's was committed after that, and nothing is lost"
            )

    def _append(self, record: Begin | Commit | End) -> None:
        data = json_frame(written(record))
        with naming_a_full_disk(self.ledger, len(data)):
            count = os.write(self._log, data)
            if count != len(data):
                os.write(self._log, b"\n")  # on a full disk this raises, and tells so
                raise BatchRunError(f"{self.ledger / 'log'} took {count} of {len(data)} bytes; try again")
            os.fsync(self._log)

    def commit(self, record: Commit) -> None:
        """Make a window's end durable, and give its files their names.

        Raises:
            FencedError: If another driver has taken the run over; nothing was committed then.
        """
        self._append(record)
        self.require_mine()
        if not self.state.commits or self.state.commits[-1] != record:
            raise BatchRunError(f"the ledger did not take window {record.window}; run again")
        self._publish(record)

    def end(self, record: End) -> None:
        """Say that this driver leaves in order."""
        self._append(record)
        self.load()

    def _publish(self, record: Commit) -> None:
        for file in (record.shard, record.dead):
            if file is not None:
                target = self.root / file.name
                target.parent.mkdir(exist_ok=True)
                try:
                    (self.incomplete / file.temporary).replace(target)
                except FileNotFoundError:
                    if not target.is_file():  # else another driver has done it
                        raise BatchRunError(f"{target} is committed and is not there; it was removed") from None
        sync_folder(self.root)
        if record.dead is not None:
            sync_folder(self.root / "ledger" / "dead")

    def _roll_forward(self) -> None:
        """Finish what a killed driver had committed and not yet named; drop what it had not committed."""
        kept = set()
        for record in self.state.commits[-2:]:
            self._publish(record)
            kept |= {file.temporary for file in (record.shard, record.dead) if file is not None}
        for path in self.incomplete.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)
        settled = len(self.state.commits)
        for path in self.answers.iterdir():
            if int(path.name.partition("-")[0]) < settled:
                path.unlink(missing_ok=True)
        rebuilt = self.incomplete / f"dead-{self.owner}"
        dead = [record.dead for record in self.state.commits if record.dead is not None]
        with rebuilt.open("wb") as out:
            for file in dead:
                out.write((self.root / file.name).read_bytes())
        if dead:
            sync_file(rebuilt)
        # the file stays open: what a driver that was succeeded still appends goes to a file that has no name any more
        self._dead = os.open(rebuilt, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        rebuilt.replace(self.root / "dead-letters.jsonl")

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A file that is being written; synced when the block ends."""
        path = self.incomplete / name
        with naming_a_full_disk(self.incomplete, 1 << 20):
            try:
                yield path
                sync_file(path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def published(self, path: Path, name: str, rows: int) -> PublishedFile:
        """What a commit says of a file that is written."""
        data = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                data.update(block)
            size = file.tell()
        return PublishedFile(name, path.name, rows, size, data.hexdigest())

    def settle_window(self, window: int, dead: PublishedFile | None) -> None:
        """Drop a committed window's answers, and let its dead letters be seen."""
        for path in self.answers.glob(f"{window:06}-*"):
            path.unlink(missing_ok=True)
        if dead is not None:
            with naming_a_full_disk(self.root, dead.bytes):
                view = memoryview((self.root / dead.name).read_bytes())
                while view:
                    view = view[os.write(self._dead, view) :]


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}…"


def is_driven(path: Path, *, owner: str, after_s: float = TAKEOVER_AFTER_S, from_afar: bool = False) -> str:
    """Who is at work, by the note that drivers renew; empty where nobody is."""
    try:
        told = json.loads(path.read_text())
        silent_s = time.time() - float(told.get("at", 0))
    except (FileNotFoundError, ValueError):
        return ""
    if told.get("owner") != owner or silent_s > after_s:
        return ""
    return str(told.get("driver")) if from_afar or _at_work(told) else ""


def _process(pid: int) -> str:
    """What tells a process from a later one with its number: the host, its boot, and when the process began."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return f"{socket.gethostname()} {pid}"
    return f"{socket.gethostname()} {boot} {pid} {began}"


def _at_work(told: dict[str, Any]) -> bool:
    """Whether that driver may still write: it is on another machine, or it is a process here that is not stopped."""
    named = str(told.get("process", ""))
    if named.partition(" ")[0] != socket.gethostname():
        return True
    pid = int(told.get("pid", 0))
    if _process(pid) != named:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return _exists(pid)
    return state not in _NOT_BUSY


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
