"""An engine as a process on a machine whose clock a test sets, and what its schedules start."""

import json
import os
import re
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import psutil

HERE = Path(__file__).parent
PATIENCE_S = 60.0


class Run(NamedTuple):
    """A run of a scheduled function: by which call, at what time on the machine's clock; of jobs, for which time."""

    name: str
    call: str
    at: float
    nominal: str = ""
    fence: int = 0


class Start(NamedTuple):
    """A start as the engine has written it down."""

    name: str
    nominal: float
    at: float


_TELL = """
import json, socket, time, modal
def tell(name, **more):
    what = {"name": name, "call": modal.current_function_call_id(), "at": time.time(), **more}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
        to.sendto(json.dumps(what).encode(), ("127.0.0.1", PORT))
"""


def moment(text):
    """Seconds since 1970 of a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def told(seconds):
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")[:19]


def build_clock(folder):
    """Compile what is preloaded."""
    library = folder / "changed_wall_clock.so"
    command = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(library), str(HERE / "changed_wall_clock.c")]
    subprocess.run(command, check=True, timeout=60)
    return library


class Recorder:
    """Hears of each run by a datagram, which is here as soon as it is sent, whatever is killed then."""

    def __init__(self):
        self.runs, self._marked = [], ""
        self._more = threading.Condition()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind(("127.0.0.1", 0))
        self.head = _TELL.replace("PORT", str(self._socket.getsockname()[1]))
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self):
        while data := self._socket.recv(65536):
            with self._more:
                if data.startswith(b"{"):
                    self.runs.append(Run(**json.loads(data)))
                else:
                    self._marked = data.decode()
                self._more.notify_all()

    def wait(self, what, seconds=PATIENCE_S, since=0):
        """Until *what* holds of the runs after the first *since*; those runs."""
        with self._more:
            found = self._more.wait_for(lambda: what(self.runs[since:]), seconds)
            assert found, f"after {seconds} s there are only {self.runs[since:]}"
            return self.runs[since:]

    def mark(self):
        """How many runs were heard of, once all that was sent up to now is here."""
        mark = uuid.uuid4().hex
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
            to.sendto(mark.encode(), self._socket.getsockname())
        with self._more:
            assert self._more.wait_for(lambda: self._marked == mark, PATIENCE_S)
            return len(self.runs)

    def linger(self, seconds):
        """Listen for so long, whatever comes."""
        with self._more:
            self._more.wait_for(lambda: False, seconds)

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
            to.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class Machine:
    """One clock, one state folder, and `python -m gpuserve.engine` on them, again and again."""

    def __init__(self, folder, library, modal_forks, at):
        self.folder, self.home, self._library, self._modal = folder, folder / "home", library, modal_forks
        self.errors, self._clock = folder / "engine.err", folder / "clock"
        self._clock.write_bytes(struct.pack("d", 0.0))
        self._ahead = os.open(self._clock, os.O_WRONLY)
        self.set(at)
        (folder / "tmp").mkdir()
        self.mark, self.process, self.environment = f"clock-{uuid.uuid4().hex}", None, {}
        self.recorder = Recorder()

    # -- the clock

    def now(self):
        return time.time() + struct.unpack("d", self._clock.read_bytes())[0]

    def set(self, to):
        """Change the clock, while everything runs: one write of eight bytes."""
        os.pwrite(self._ahead, struct.pack("d", to - time.time()), 0)

    def jump(self, seconds):
        change = struct.unpack("d", self._clock.read_bytes())[0] + seconds
        os.pwrite(self._ahead, struct.pack("d", change), 0)

    def approach_a_minute(self):
        """Have 4 s left of a minute, and an engine that has seen it."""
        known, second = len(self.jumps()), self.now() % 60
        if not 45 < second < 57:
            self.set(self.now() // 60 * 60 + (56 if second <= 45 else 116))
            deadline = time.monotonic() + PATIENCE_S
            while len(self.jumps()) == known:
                assert time.monotonic() < deadline, self.log()
                self.recorder.linger(0.05)

    # -- the engine

    def begin(self):
        with self.errors.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpuserve.engine", "--home", str(self.home)],
                env={
                    **os.environ,
                    "TMPDIR": str(self.folder / "tmp"),
                    "ENGINE_MARK": self.mark,
                    "CHANGED_CLOCK": str(self._clock),
                    "LD_PRELOAD": str(self._library),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
            )

    def start(self):
        self.begin()
        line = self.process.stdout.readline()
        assert line, self.log()
        self.environment = {key: value for key, value in json.loads(line).items() if key.startswith("MODAL_")}
        return self

    def kill(self):
        self.process.kill()
        assert self.process.wait(PATIENCE_S) == -signal.SIGKILL, self.log()
        self.process.stdout.close()

    def stop(self):
        if self.process is not None and not self.process.stdout.closed:
            if self.process.poll() is None:
                self.process.terminate()
            self.process.wait(PATIENCE_S)
            self.process.stdout.close()

    def close(self):
        self.stop()
        self.recorder.close()
        os.close(self._ahead)

    def suspend(self):
        """All processes of the engine stand still, as they do on a machine that sleeps; give what wakes them."""
        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        for one in processes:
            one.send_signal(signal.SIGSTOP)

        def resume():
            for one in processes:
                one.send_signal(signal.SIGCONT)

        return resume

    def log(self):
        return self.errors.read_text()

    def jumps(self):
        """What the engine's log says of jumps, each as ``"ahead by 2:00:00"``."""
        return re.findall(r"the clock jumped (ahead by .*?|back by .*?);", self.log())

    def remains(self, within_s=PATIENCE_S):
        """The processes of this engine and its containers that have not ended; a while is waited for that."""
        deadline = time.monotonic() + within_s
        while found := self._marked():
            handles = []
            for pid in found:
                try:
                    handles.append(os.pidfd_open(pid))
                except ProcessLookupError:
                    continue
            ended = select.select(handles, [], [], max(0.0, deadline - time.monotonic()))[0] if handles else [0]
            for handle in handles:
                os.close(handle)
            if not ended:
                break
        return found

    def _marked(self):
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if self.mark.encode() in environment:
                    found.add(int(entry.name))
        return found

    # -- apps, and what was started of them

    def modal(self, *arguments):
        """The modal CLI, on the real clock."""
        done = self._modal(*arguments, environment=self.environment, folder=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, name, source):
        (self.folder / f"{name}.py").write_text(self.recorder.head + source)
        self.modal("deploy", f"{name}.py")

    def starts(self):
        """All starts that are written down, of an engine that has ended; the first one first."""
        copy = self.folder / "copy"
        copy.mkdir()
        for path in self.home.glob("engine.sqlite3*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        with closing(sqlite3.connect(copy / "engine.sqlite3")) as database:
            metas = database.execute("SELECT id, meta FROM functions")
            names = {ident: json.loads(meta)["name"] for ident, meta in metas}
            rows = database.execute("SELECT function_id, nominal, started_at FROM schedule_starts ORDER BY id")
            found = [Start(names.get(ident, ident), nominal, at) for ident, nominal, at in rows]
        shutil.rmtree(copy)
        return found


def count(runs, name):
    return sum(one.name == name for one in runs)
