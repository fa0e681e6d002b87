"""An engine and a client with a load, each a process that can be killed, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from grpclib.client import Channel, UnaryUnaryMethod

from gpuserve.engine.protocol import RPCS

collect_ignore = ["load"]

LOAD = Path(__file__).with_name("load")
PATIENCE_S = 60.0


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"chaos_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ledger, disk = _module(LOAD / "ledger.py"), _module(LOAD / "disk.py")


def ended(pids: set[int], within_s: float = PATIENCE_S) -> set[int]:
    """Wait for the end of processes that are no children of ours; return those that have not ended."""
    deadline, waiting = time.monotonic() + within_s, dict[int, int]()
    for pid in pids:
        try:
            waiting[os.pidfd_open(pid)] = pid
        except ProcessLookupError:
            continue
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle in select.select(list(waiting), [], [], left)[0]:
            os.close(handle)
            del waiting[handle]
    for handle in waiting:
        os.close(handle)
    return set(waiting.values())


class Engine:
    """`python -m gpuserve.engine` on one state folder, again and again."""

    def __init__(self, folder: Path, program: tuple[str, ...] = (sys.executable, "-m", "gpuserve.engine")) -> None:
        self.home, self.temporary, self.errors = folder / "state", folder / "tmp", folder / "engine.err"
        self.temporary.mkdir()
        self.mark = f"chaos-{uuid.uuid4().hex}"
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._program = program

    def start(self, *options: str) -> Engine:
        self._begin(*options)
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()
        note = json.loads(line)
        self.pid = note["pid"]
        self.environment = {key: value for key, value in note.items() if key.startswith("MODAL_")}
        return self

    def start_and_kill(self, after_s: float) -> None:
        """Kill it while it starts, or soon after."""
        self._begin()
        select.select([], [], [], after_s)
        self.kill()

    def _begin(self, *options: str) -> None:
        with self.errors.open("ab") as sink:
            self.process = subprocess.Popen(
                [*self._program, "--home", str(self.home), *options],
                env={**os.environ, "TMPDIR": str(self.temporary), "CHAOS_MARK": self.mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
            )

    def kill(self) -> None:
        self.process.kill()
        self.reap()

    def reap(self) -> None:
        """Wait for an engine that was killed, or kills itself."""
        assert self.process.wait(PATIENCE_S) == -signal.SIGKILL, self.errors.read_text()
        self.process.stdout.close()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return code

    def trees(self) -> list[list[psutil.Process]]:
        """Each container's processes, the oldest first: its own first one, Modal's, and what that started."""
        found = []
        for forked in psutil.Process(self.process.pid).children():
            for first in forked.children():
                with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                    found.append(sorted([first, *first.children(recursive=True)], key=psutil.Process.create_time))
        return found

    def remains(self) -> set[int]:
        """All processes that this engine or its containers have started, and that have not ended."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if self.mark.encode() in words:
                    found.add(int(entry.name))
        return found

    def integrity(self) -> str:
        """What SQLite thinks of a copy of the state file, log included."""
        copy = self.home.parent / "copy"
        copy.mkdir()
        for path in self.home.glob("engine.sqlite3*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        with contextlib.closing(sqlite3.connect(copy / "engine.sqlite3")) as database:
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
        shutil.rmtree(copy)
        return verdict

    def rpc(self, name: str, /, idempotency: str = "", attempt: int = 0, **fields: Any) -> Any:
        """Make one call, as a modal client does it."""
        return asyncio.run(call(self.environment, name, fields, idempotency, attempt))


async def call(
    environment: Mapping[str, str],
    name: str,
    fields: Mapping[str, Any],
    idempotency: str = "",
    attempt: int = 0,
    leave_after_s: float | None = None,
) -> Any:
    """Make one call; or begin it, and hang up after so many seconds without having been answered."""
    metadata = {
        "x-modal-token-id": environment["MODAL_TOKEN_ID"],
        "x-modal-token-secret": environment["MODAL_TOKEN_SECRET"],
        "x-idempotency-key": idempotency or uuid.uuid4().hex,
        **({"x-retry-attempt": str(attempt)} if attempt else {}),
    }
    rpc = RPCS[name]
    async with Channel(path=environment["MODAL_SERVER_URL"].removeprefix("unix://")) as channel:
        method = UnaryUnaryMethod(channel, rpc.path, rpc.request, rpc.reply)
        waiting = asyncio.ensure_future(method(rpc.request(**fields), timeout=PATIENCE_S, metadata=metadata))
        if leave_after_s is None:
            return await waiting
        done, _ = await asyncio.wait([waiting], timeout=leave_after_s)
        assert not done
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return None


class Client:
    """The load's program; the next session goes on with the same ledger."""

    def __init__(self, folder: Path, environment: dict[str, str], seed: str) -> None:
        self._folder, self._environment, self._seed = folder, environment, seed
        self.session, self.process = 0, None

    def start(self) -> Client:
        self.session += 1
        self._acks, theirs = os.pipe()
        with (self._folder / "client.err").open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, LOAD / "client.py", self._folder, self._seed, str(self.session), str(theirs)],
                env={**os.environ, **self._environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                pass_fds=(theirs,),
                text=True,
            )
        os.close(theirs)
        assert self._line()["ready"]
        return self

    def _line(self) -> dict[str, Any]:
        if not select.select([self.process.stdout], [], [], PATIENCE_S)[0]:
            raise AssertionError(f"the client is stuck: {(self._folder / 'client.err').read_text()[-3000:]}")
        line = self.process.stdout.readline()
        assert line, (self._folder / "client.err").read_text()[-3000:]
        return json.loads(line)

    def ask(self, command: str) -> dict[str, Any]:
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._line()

    def wait_for(self, answers: int, linger_s: float = 0.0) -> None:
        """Return *linger_s* after the load was given so many answers."""
        while answers > 0:
            assert select.select([self._acks], [], [], PATIENCE_S)[0], "no operation is answered any more"
            answers -= len(os.read(self._acks, answers))
        select.select([], [], [], linger_s)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.process.stdin.close()
        self.process.stdout.close()
        os.close(self._acks)

    def drain(self) -> None:
        """Forget the answers that came so far."""
        while select.select([self._acks], [], [], 0)[0]:
            os.read(self._acks, 65536)


class World:
    """One engine, one client with a load, and a nemesis that kills them and their containers by the dice of *seed*."""

    def __init__(self, folder: Path, seed: int) -> None:
        print(f"seed {seed}")
        self.dice = random.Random(seed)
        self.folder, self.engine = folder, Engine(folder).start()
        (folder / "ledger").touch()
        self.client = Client(folder, self.engine.environment, str(seed)).start()
        self.killed = dict.fromkeys(("engine", "container", "client"), 0)

    def round(self, victim: str) -> None:
        """Kill *victim* in the middle of the load, start anew what died, and look at everything."""
        if victim == "container" or (victim == "engine" and self.dice.random() < 0.5):
            self.client.ask(f"litter {self.engine.mark}")
        self.client.drain()
        self.client.ask("resume")
        self.client.wait_for(self.dice.randint(1, 40), self.dice.uniform(0, 0.03))
        getattr(self, f"_kill_{victim}")()
        self.client.ask("pause")
        problems = self.problems()
        assert not problems, "\n".join(problems)

    def _kill_engine(self) -> None:
        before = self.engine.environment
        self.engine.kill()
        self.killed["engine"] += 1
        assert ended(self.engine.remains()) == set()
        assert self.engine.remains() == set()
        while self.dice.random() < 0.3:
            self.engine.start_and_kill(self.dice.uniform(0, 0.8))
            self.killed["engine"] += 1
        assert ended(self.engine.remains()) == set()
        assert self.engine.integrity() == "ok"
        self.engine.start()
        assert self.engine.environment == before
        assert list(self.engine.temporary.glob("gpuserve-*")) == []

    def _kill_both(self) -> None:
        self.client.kill()
        self.killed["client"] += 1
        self._kill_engine()
        self.client.start()

    def _kill_client(self) -> None:
        self.client.kill()
        self.killed["client"] += 1
        self.client.start()

    def _kill_container(self) -> None:
        """Kill the first process of a container or Modal's in it, and see that all others end with it."""
        while not self._kill_one_of(self.engine.trees()):
            self.client.wait_for(1)  # the load begins new ones

    def _kill_one_of(self, trees: list[list[psutil.Process]]) -> bool:
        if not trees:
            return False
        tree = self.dice.choice([self.dice.choice(trees), max(trees, key=len)])  # the largest has daemons
        try:
            self.dice.choice(tree[:2]).kill()
        except psutil.NoSuchProcess:
            return False
        self.killed["container"] += 1
        assert ended({one.pid for one in tree}) == set()
        return True

    def problems(self) -> list[str]:
        entries = ledger.read(self.folder / "ledger")
        seen = self.client.ask("observe")
        app = self.engine.rpc("AppGetByDeploymentName", name="shelf").app_id
        history = self.engine.rpc("AppDeploymentHistory", app_id=app).app_deployment_histories
        return ledger.problems(entries, {**seen, "history": [one.tag for one in history]})

    def close(self) -> None:
        self.client.kill()
        if self.engine.process.poll() is None:
            assert self.engine.stop() == 0, self.engine.errors.read_text()
        assert ended(self.engine.remains()) == set()


@pytest.fixture
def new_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    """A world from a seed."""
    made: list[World] = []

    def make(seed: int) -> World:
        made.append(World(tmp_path_factory.mktemp("w"), seed))  # a short path: sockets lie below it
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture(scope="session")
def chaos() -> ModuleType:
    """What is defined here, for tests that make their own engines."""
    return sys.modules[__name__]


@pytest.fixture(scope="module")
def rpc(engine: Any) -> Callable[..., Any]:
    """Make one call to this module's engine."""

    def one(name: str, /, idempotency: str = "", leave_after_s: float | None = None, **fields: Any) -> Any:
        return asyncio.run(call(engine.environment, name, fields, idempotency, leave_after_s=leave_after_s))

    return one
