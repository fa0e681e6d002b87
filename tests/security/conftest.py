"""Engines in this process and in one of their own, and any RPC of the protocol by name."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError, Status
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod

from gpuserve.engine import LocalEngine
from gpuserve.engine.protocol import RPCS
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.workers.tasks import Task


class Wire:
    """One connection that calls any RPC of the descriptor by its name."""

    def __init__(self, url: str, metadata: Mapping[str, str] | None = None) -> None:
        self.metadata = dict(metadata or {})
        self._runner = asyncio.Runner()
        self._url = url
        self._channel = self._runner.run(self._open())

    async def _open(self) -> Channel:
        if self._url.startswith("unix://"):
            return Channel(path=self._url.removeprefix("unix://"))
        host, _, port = self._url.removeprefix("http://").rpartition(":")
        return Channel(host=host, port=int(port))

    def request(self, name: str, fields: Mapping[str, Any], idempotency: str = "") -> Any:
        """The coroutine of one call; a streaming RPC gives the list of its messages."""
        rpc = RPCS[name]
        method = (UnaryStreamMethod if rpc.streams else UnaryUnaryMethod)(
            self._channel, rpc.path, rpc.request, rpc.reply
        )
        metadata = {**self.metadata, **({"x-idempotency-key": idempotency} if idempotency else {})}
        return method(rpc.request(**fields), timeout=30.0, metadata=metadata)

    def call(self, name: str, /, *, idempotency: str = "", **fields: Any) -> Any:
        """Make one call and return its reply."""
        return self._runner.run(_awaited(self.request(name, fields, idempotency)))

    def together(self, *calls: Any) -> list[Any]:
        """Await several coroutines at once."""
        return self._runner.run(_gathered(calls))

    def refusal(self, name: str, /, *, idempotency: str = "", **fields: Any) -> Status | None:
        """The status that one call ends with; ``None`` where it is answered."""
        try:
            self.call(name, idempotency=idempotency, **fields)
        except GRPCError as error:
            return error.status
        return None

    def statuses(self, names: Iterable[str]) -> dict[str, Status]:
        """How the engine answers an empty request for each of *names*."""
        return {name: status for name, (status, _message) in self._answers(names).items()}

    def messages(self, names: Iterable[str]) -> dict[str, str]:
        """What the engine says to an empty request for each of *names*."""
        return {name: message for name, (_status, message) in self._answers(names).items()}

    def _answers(self, names: Iterable[str]) -> dict[str, tuple[Status, str]]:
        room = asyncio.Semaphore(50)  # HTTP/2 allows 100 streams at a time

        async def one(name: str) -> tuple[str, tuple[Status, str]]:
            async with room:
                try:
                    await self.request(name, {})
                except GRPCError as error:
                    return name, (error.status, error.message or "")
            return name, (Status.OK, "")

        return dict(self._runner.run(_gathered([one(name) for name in names])))

    def close(self) -> None:
        """Hang up."""
        self._runner.run(self._shut())
        self._runner.close()

    async def _shut(self) -> None:
        self._channel.close()


async def _awaited(call: Any) -> Any:
    return await call


async def _gathered(calls: Iterable[Any]) -> list[Any]:
    return await asyncio.gather(*calls)


def token(environment: Mapping[str, str]) -> dict[str, str]:
    """What a client sends with each call."""
    return {
        "x-modal-token-id": environment["MODAL_TOKEN_ID"],
        "x-modal-token-secret": environment["MODAL_TOKEN_SECRET"],
    }


Connect = Callable[..., Wire]


def _dialling() -> Iterator[Connect]:
    wires: list[Wire] = []

    def open_one(url: str, metadata: Mapping[str, str] | None = None) -> Wire:
        wires.append(Wire(url, metadata))
        return wires[-1]

    yield open_one
    for wire in wires:
        wire.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open a `Wire` to a URL; all are closed at the end of the test."""
    yield from _dialling()


@pytest.fixture(scope="module")
def dial() -> Iterator[Connect]:
    """The same until the end of the module."""
    yield from _dialling()


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    """An engine in this process, with an empty state."""
    with LocalEngine() as running:
        yield running


@pytest.fixture(scope="module")
def client(engine: LocalEngine, dial: Connect) -> Wire:
    """A connection with the engine's token."""
    return dial(engine.environment["MODAL_SERVER_URL"], token(engine.environment))


@pytest.fixture(scope="module")
def on_loop(engine: LocalEngine) -> Callable[[Any], Any]:
    """Run a coroutine on the engine's own loop."""

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, engine._loop).result(20)

    return run


@dataclass
class EngineProcess:
    """An engine in a process of its own."""

    home: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    errors: Path
    closed: bool = field(default=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def run_folder(self) -> Path:
        return Path(self.environment["MODAL_SERVER_URL"].removeprefix("unix://")).parent

    def token(self) -> dict[str, str]:
        return token(self.environment)

    def stop(self) -> int:
        """End it as a user does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def start_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., EngineProcess]]:
    """Start ``python -m gpuserve.engine`` (or *command*) on a fresh home."""
    started: list[EngineProcess] = []

    def start(
        *options: str,
        home: Path | None = None,
        command: tuple[str, ...] = (),
        umask: int = 0o022,
        **variables: str,
    ) -> EngineProcess:
        folder = tmp_path_factory.mktemp("engine")
        home, errors = home or folder / "below" / "gpuserve", folder / "engine.err"
        program = command or (sys.executable, "-m", "gpuserve.engine")
        with errors.open("wb") as sink:
            process = subprocess.Popen(
                [*program, "--home", str(home), *options],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=sink,
                umask=umask,
            )
        line = process.stdout.readline() if process.stdout else b""
        assert line, errors.read_text()
        note = json.loads(line)
        del note["pid"]
        started.append(EngineProcess(home, process, note, errors))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="module")
def modal_cli(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Write an app's source to a file and run ``modal COMMAND file`` on an engine."""

    def run(environment: Mapping[str, str], command: str, source: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("app")
        (folder / "app.py").write_text(textwrap.dedent(source))
        done = subprocess.run(
            [sys.executable, "-m", "modal", command, "app.py"],
            env={**os.environ, **environment, "COLUMNS": "200"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


class Ghosts:
    """Tasks with a door but without a process: nothing competes for what their doors give out."""

    def __init__(self, engine: LocalEngine, on_loop: Callable[[Any], Any]) -> None:
        self._core, self._on_loop = engine.core, on_loop
        self._made: list[Task] = []

    def make(self, function_id: str) -> Task:
        """A task of that function, which the engine believes to run."""

        async def made() -> Task:
            app_id = self._core.registry.functions[function_id].app_id
            task = Task(new_id("ta"), function_id, app_id, enqueued_at=0.0)
            self._core.scheduler.tasks[task.id] = task
            task.door = self._core._open_door(task)
            await task.door.start(path=self._core._door_path(task))
            return task

        self._made.append(self._on_loop(made()))
        return self._made[-1]

    def forget(self, task: Task) -> None:
        """Let the engine believe that the task has ended, while its door stays open."""

        async def forgotten() -> None:
            self._core.scheduler.tasks.pop(task.id, None)

        self._on_loop(forgotten())

    def end(self, task: Task) -> None:
        """End a task as the scheduler does."""

        async def ended() -> None:
            task.door.close()
            await task.door.wait_closed()

        self.forget(task)
        self._made.remove(task)
        self._on_loop(ended())

    def end_all(self) -> None:
        """Leave none."""
        for task in list(self._made):
            self.end(task)


@pytest.fixture
def ghosts(engine: LocalEngine, on_loop: Callable[[Any], Any]) -> Iterator[Ghosts]:
    """Containers without processes, on this module's engine."""
    made = Ghosts(engine, on_loop)
    yield made
    made.end_all()


@pytest.fixture(scope="session")
def credentials() -> Callable[[Mapping[str, str]], dict[str, str]]:
    """The metadata that an engine's environment stands for."""
    return token
