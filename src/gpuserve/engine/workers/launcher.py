"""Starts containers by asking the pre-forked process for them, and ends them with all they started.

The pre-forked process (`zygote.py`) has imported Modal's container runtime and nothing else, so that
a container is a fork away: 41 ms to its first result where a plain start takes 400.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpuserve.engine.workers.process_tree import kill_tree
from gpuserve.exceptions import EngineError

__all__ = ["Container", "ContainerSpec", "Launcher", "SourceFile", "VolumeBind"]

_START_TIMEOUT_S = 30.0
_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class VolumeBind:
    """A volume's folder and where it is seen in the container."""

    path: str
    host: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the app's source and where it is seen in the container."""

    path: str
    host: Path


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that a container needs to start.

    Attributes:
        packages: The distributions that user code may import; ``None`` for all that are installed.
        server_url: The container's own socket, which names it to the engine.
    """

    task_id: str
    arguments: bytes
    environment: Mapping[str, str]
    server_url: str
    files: tuple[SourceFile, ...] = ()
    volumes: tuple[VolumeBind, ...] = ()
    workdir: str | None = None
    packages: frozenset[str] | None = None
    image_id: str = ""
    environment_name: str = ""


@dataclass(slots=True)
class Container:
    """A running container."""

    task_id: str
    pid: int
    exited: asyncio.Future[int] = field(repr=False)

    async def wait(self) -> int:
        """Wait for its end: the exit code, or minus the number of the signal that killed it."""
        return await asyncio.shield(self.exited)

    def _signal(self, number: int) -> None:
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def interrupt(self) -> None:
        """Ask it to leave now: exit hooks run, what it runs is broken off."""
        self._signal(signal.SIGINT)

    def terminate(self) -> None:
        """Ask a server to leave; kills any other container at once."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and every process that it started."""
        if not self.exited.done():
            kill_tree(self.pid, self.task_id)


class Launcher:
    """The pre-forked process, and the containers forked from it."""

    def __init__(self, folder: Path) -> None:
        """Containers get a folder each under *folder*."""
        self._folder = folder
        self._containers: dict[str, Container] = {}
        self._started: dict[str, asyncio.Future[int]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._closing = False
        self.isolation = "unknown"

    async def start(self) -> None:
        """Start the pre-forked process and wait until it is ready.

        Raises:
            EngineError: If it does not come up.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a file of the user's folder must not stand in for a module of Python's
            "-m",
            "gpuserve.engine.workers.zygote",
            str(theirs.fileno()),
            str(os.getpid()),
            pass_fds=(theirs.fileno(),),
            env=environment,
            start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        self._socket = ours
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.ensure_future(self._read(ready))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                self.isolation = await ready
        except TimeoutError as error:
            raise EngineError("the container runtime did not start within 30 s") from error

    async def _read(self, ready: asyncio.Future[str]) -> None:
        if self._socket is None:
            raise EngineError("the launcher is not started")
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._socket, _READ_BYTES):
            event = json.loads(data)
            if "ready" in event:
                ready.set_result(event["ready"])
            elif "pid" in event:
                self._started[event["task_id"]].set_result(event["pid"])
            elif "exit" in event:
                container = self._containers.pop(event["task_id"], None)
                if container is not None and not container.exited.done():
                    kill_tree(container.pid, container.task_id)
                    container.exited.set_result(event["exit"])
        if not ready.done():
            ready.set_exception(EngineError("the container runtime did not start; its error is in the engine's log"))
        if not self._closing:
            gone = EngineError("the container runtime died; restart the engine")
            for future in [*self._started.values(), *(one.exited for one in self._containers.values())]:
                if not future.done():
                    future.set_exception(gone)

    async def launch(self, spec: ContainerSpec, on_log: Callable[[int, bytes], None]) -> Container:
        """Start one container; *on_log* gets what it writes to descriptors 1 and 2.

        Raises:
            EngineError: If the container cannot be started as described.
        """
        if self._socket is None:
            raise EngineError("the launcher is not started")
        folder = self._folder / spec.task_id
        folder.mkdir(mode=0o700)
        for name in ("arguments", "request.json"):
            (folder / name).touch(mode=0o600)  # the request holds the values of secrets
        (folder / "arguments").write_bytes(spec.arguments)
        request = {
            "task_id": spec.task_id,
            "folder": str(folder),
            "environment": dict(spec.environment),
            "server_url": spec.server_url,
            "files": [[one.path, str(one.host)] for one in spec.files],
            "volumes": [{**asdict(one), "host": str(one.host)} for one in spec.volumes],
            "workdir": spec.workdir,
            "packages": None if spec.packages is None else sorted(spec.packages),
            "image_id": spec.image_id,
            "environment_name": spec.environment_name,
        }
        (folder / "request.json").write_text(json.dumps(request))
        loop = asyncio.get_running_loop()
        pipes = [os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)]
        started: asyncio.Future[int] = loop.create_future()
        self._started[spec.task_id] = started
        message = json.dumps({"task_id": spec.task_id, "folder": str(folder)}).encode()
        socket.send_fds(self._socket, [message], [pipes[0][1], pipes[1][1]])
        logs = [await _follow(pipes[0][0], lambda data: on_log(1, data))]
        logs.append(await _follow(pipes[1][0], lambda data: on_log(2, data)))
        os.close(pipes[0][1])
        os.close(pipes[1][1])
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                pid = await started
        finally:
            self._started.pop(spec.task_id, None)
        ended: asyncio.Future[int] = loop.create_future()
        container = Container(spec.task_id, pid, ended)
        self._containers[spec.task_id] = container
        return _with_cleanup(container, logs, folder)

    async def close(self) -> None:
        """Kill every container and the pre-forked process."""
        self._closing = True
        for container in list(self._containers.values()):
            container.kill()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        for container in list(self._containers.values()):
            if not container.exited.done():
                container.exited.set_result(-signal.SIGKILL)


def _with_cleanup(container: Container, logs: list[asyncio.Future[None]], folder: Path) -> Container:
    """Make the end known only when the last log line was read, and the container's folder is gone."""
    raw = container.exited
    loop = asyncio.get_running_loop()
    whole: asyncio.Future[int] = loop.create_future()

    async def finish() -> None:
        try:
            code = await asyncio.shield(raw)
            await asyncio.wait(logs, timeout=2.0)
            for name in ("arguments", "request.json"):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
            whole.set_result(code)
        except EngineError as error:
            whole.set_exception(error)

    job = loop.create_task(finish())
    whole.add_done_callback(lambda _future: job)  # keeps the job alive as long as its future
    return _Watched(container.task_id, container.pid, raw, whole)


@dataclass(slots=True)
class _Watched(Container):
    """A container whose `wait` also waits for its logs."""

    whole: asyncio.Future[int] = field(repr=False)

    async def wait(self) -> int:
        """Wait for its end and its last log line."""
        return await asyncio.shield(self.whole)


class _LogReader(asyncio.Protocol):
    def __init__(self, on_data: Callable[[bytes], None], done: asyncio.Future[None]) -> None:
        self._on_data, self._done = on_data, done

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def _follow(descriptor: int, on_data: Callable[[bytes], None]) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    await loop.connect_read_pipe(lambda: _LogReader(on_data, done), os.fdopen(descriptor, "rb", 0))
    return done
