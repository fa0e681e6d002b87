"""Starts containers by asking the pre-forked process for them, and ends them with all they started.

The pre-forked process (`zygote.py`) has imported Modal's container runtime and nothing else, so that
a container is a fork away: 41 ms to its first result where a plain start takes 400.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gpuserve.engine.workers.links import Links
from gpuserve.engine.workers.venvs import Venv
from gpuserve.exceptions import EngineError, StateError

__all__ = ["Container", "ContainerSpec", "Launcher", "SourceFile", "VolumeBind"]

_START_TIMEOUT_S = 30.0
_READ_BYTES = 65536
# How long killed containers may take to be gone; one that hangs in the kernel is left to it.
_END_TIMEOUT_S = 10.0
_LOCK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class VolumeBind:
    """A volume's folder and where it is seen in the container."""

    path: str
    host: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the app's source or image, and where it is seen in the container."""

    path: str
    host: Path
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that a container needs to start.

    Attributes:
        packages: The distributions that user code may import; ``None`` for all that are installed.
        venv: The environment that it runs in; ``None`` for this interpreter.
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
    venv: Venv | None = None
    image_id: str = ""
    environment_name: str = ""


@dataclass(slots=True)
class Container:
    """A container from the request for it to the end of its last process.

    Attributes:
        pid: Of its first process; 0 until that is known.
        whole_by_kill: Whether all of it ends with its first process.
    """

    task_id: str
    pid: int
    whole_by_kill: bool
    ended: asyncio.Future[int] = field(repr=False)
    gone: asyncio.Future[int] = field(repr=False)

    async def wait(self) -> int:
        """Wait for its end and its last log line: the exit code, or minus the number of the signal that killed it."""
        return await asyncio.shield(self.gone)

    def _signal(self, number: int) -> None:
        if self.pid and not self.ended.done():  # 0 would be every process of this one's group
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
        # a pid namespace ends with its first process; without one, that process does it on request
        self._signal(signal.SIGKILL if self.whole_by_kill else signal.SIGQUIT)


class Launcher:
    """The pre-forked process, and the containers forked from it."""

    def __init__(self, folder: Path, lock: Path, *, isolation: str = "auto", hidden: tuple[Path, ...] = ()) -> None:
        """Containers get a folder each under *folder*.

        Args:
            folder: A folder of this engine's run alone.
            lock: A file that is locked as long as any container runs, whatever becomes of the engine.
            isolation: ``"auto"``, ``"namespaces"`` or ``"links"``.
            hidden: The engine's own folders, which no container sees.
        """
        self._folder, self._lock, self._wanted, self._hidden = folder, lock, isolation, hidden
        self._links = Links(folder / "linked", hidden)
        self._containers: dict[str, Container] = {}
        self._started: dict[str, asyncio.Future[int]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._sending = asyncio.Lock()
        self._closing = self._expected = False
        self._about: dict[str, Any] = {}

    @property
    def isolation(self) -> str:
        """How containers are kept apart, in words."""
        return str(self._about.get("ready", "unknown"))

    async def start(self) -> None:
        """Wait until no container of an earlier engine runs, then start the pre-forked process.

        Raises:
            EngineError: If it does not come up, or the machine does not allow the isolation asked for.
            StateError: If the earlier engine's containers do not end.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = await _alone(self._lock)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MODAL_")}
        environment["MODAL_IS_REMOTE"] = "1"  # or it would take settings from this user's own modal.toml
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a file of the user's folder must not stand in for a module of Python's
            "-m",
            "gpuserve.engine.workers.zygote",
            str(theirs.fileno()),
            str(os.getpid()),
            str(self._folder),
            self._wanted,
            str(lock),
            pass_fds=(theirs.fileno(), lock),
            env=environment,
            start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL,
        )
        theirs.close()
        os.close(lock)
        self._socket = ours
        ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.ensure_future(self._read(ready))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                self._about = await ready
        except TimeoutError as error:
            raise EngineError("the container runtime did not start within 30 s") from error

    def expect(self) -> None:
        """There is an app, so that containers will be asked for: have the runtime imported by then."""
        if self._socket is not None and not self._expected:
            self._expected = True
            with contextlib.suppress(BlockingIOError):  # the first container has it imported in any case
                self._socket.send(json.dumps({"expect": True}).encode())

    async def _read(self, ready: asyncio.Future[dict[str, Any]]) -> None:
        if self._socket is None:
            raise EngineError("the launcher is not started")
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._socket, _READ_BYTES):
            event = json.loads(data)
            if "ready" in event:
                ready.set_result(event)
            elif "refused" in event:
                ready.set_exception(EngineError(event["refused"]))
            elif "pid" in event:
                self._has_begun(event["task_id"], event["pid"])
            else:
                # told by the container's first process, and then again by its parent
                container = self._containers.pop(event["task_id"], None)
                if container is not None and not container.ended.done():
                    container.ended.set_result(event["exit"])
        if not ready.done():
            ready.set_exception(EngineError("the container runtime did not start; its error is in the engine's log"))
        if not self._closing:
            gone = EngineError("the container runtime died; restart the engine")
            for future in [*self._started.values(), *(one.ended for one in self._containers.values())]:
                if not future.done():
                    future.set_exception(gone)

    def _has_begun(self, task_id: str, pid: int) -> None:
        started = self._started.get(task_id)
        if started is not None and not started.done():
            started.set_result(pid)
            return
        # whoever asked for it has given it up meanwhile
        loop = asyncio.get_running_loop()
        Container(task_id, pid, self._about["pids"], loop.create_future(), loop.create_future()).kill()

    async def launch(self, spec: ContainerSpec, on_log: Callable[[int, bytes], None]) -> Container:
        """Start one container; *on_log* gets what it writes to descriptors 1 and 2.

        Raises:
            EngineError: If the container cannot be started as described.
        """
        if self._socket is None:
            raise EngineError("the launcher is not started")
        folder = self._folder / spec.task_id
        loop = asyncio.get_running_loop()
        container = Container(spec.task_id, 0, self._about["pids"], loop.create_future(), loop.create_future())
        try:
            self._prepare(folder, spec, on_log)
            self._containers[spec.task_id] = container
            logs = await self._begin(container, on_log)
        except BaseException:
            self._containers.pop(spec.task_id, None)
            self._clean(spec.task_id)
            raise
        job = loop.create_task(self._finish(container, logs))
        self._jobs.add(job)  # asyncio keeps weak references only
        job.add_done_callback(self._jobs.discard)
        return container

    def _prepare(self, folder: Path, spec: ContainerSpec, on_log: Callable[[int, bytes], None]) -> None:
        files = [(one.path, str(one.host), one.mode) for one in spec.files]
        if not self._about["mounts"]:
            self._links.hold(spec.task_id, files, [(one.path, one.host) for one in spec.volumes])
            for one in spec.volumes:
                if one.read_only:
                    on_log(2, f"{one.path} is writable here: a link cannot be read-only\n".encode())
        folder.mkdir(mode=0o700)
        self._write_request(folder, spec, files)

    async def _begin(self, container: Container, on_log: Callable[[int, bytes], None]) -> list[asyncio.Future[None]]:
        """Ask for the container's first process; return what ends with its logs."""
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._started[container.task_id] = started
        (out, out_end), (err, err_end) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        logs: list[asyncio.Future[None]] = []
        readers: list[asyncio.ReadTransport] = []
        try:
            for number, pipe in ((1, out), (2, err)):
                reader, log = await _follow(pipe, partial(on_log, number))
                readers.append(reader)
                logs.append(log)
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._send({"task_id": container.task_id}, [out_end, err_end])
                container.pid = await started
        except BaseException:
            for reader in readers:  # the engine may end before they would have
                reader.close()
            raise
        finally:
            os.close(out_end)
            os.close(err_end)
            self._started.pop(container.task_id, None)
        return logs

    def _write_request(self, folder: Path, spec: ContainerSpec, files: list[tuple[str, str, int]]) -> None:
        for name in ("arguments", "request.json"):
            (folder / name).touch(mode=0o600)  # the request holds the values of secrets
        (folder / "arguments").write_bytes(spec.arguments)
        kept = [str(folder / "arguments"), spec.server_url.removeprefix("unix://")]
        kept += [] if spec.venv is None else [str(spec.venv.folder), str(spec.venv.runtime)]
        request = {
            "task_id": spec.task_id,
            "environment": dict(spec.environment),
            "server_url": spec.server_url,
            "files": files,
            "volumes": [{**asdict(one), "host": str(one.host)} for one in spec.volumes],
            "hidden": {str(one): [path for path in kept if Path(path).is_relative_to(one)] for one in self._hidden},
            "workdir": spec.workdir,
            "packages": None if spec.packages is None else sorted(spec.packages),
            "venv": None if spec.venv is None else [str(spec.venv.folder), str(spec.venv.packages)],
            "image_id": spec.image_id,
            "environment_name": spec.environment_name,
        }
        (folder / "request.json").write_text(json.dumps(request))

    async def _send(self, message: dict[str, str], descriptors: list[int]) -> None:
        if self._socket is None:
            raise EngineError("the launcher is not started")
        loop = asyncio.get_running_loop()
        async with self._sending:
            while True:
                try:
                    socket.send_fds(self._socket, [json.dumps(message).encode()], descriptors)
                except BlockingIOError:
                    writable = asyncio.Event()
                    loop.add_writer(self._socket, writable.set)
                    try:
                        await writable.wait()
                    finally:
                        loop.remove_writer(self._socket)
                else:
                    return

    async def _finish(self, container: Container, logs: list[asyncio.Future[None]]) -> None:
        """Make the end known only when the last log line was read, and the container's folder is gone."""
        try:
            code = await container.ended
            await asyncio.wait(logs, timeout=2.0)
            container.gone.set_result(code)
        except EngineError as error:
            container.gone.set_exception(error)
        finally:
            self._clean(container.task_id)

    def _clean(self, task_id: str) -> None:
        self._links.release(task_id)
        shutil.rmtree(self._folder / task_id, ignore_errors=True)

    async def close(self) -> None:
        """Kill every container and the pre-forked process."""
        self._closing = True
        leaving = list(self._containers.values())
        for container in leaving:
            container.kill()
        if leaving:
            await asyncio.wait([one.ended for one in leaving], timeout=_END_TIMEOUT_S)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        for container in leaving:
            if not container.ended.done():
                container.ended.set_result(-signal.SIGKILL)
        await asyncio.gather(*self._jobs)


async def _alone(path: Path) -> int:
    """Take the lock that an earlier engine's containers hold until the last of them has ended."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _END_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up:
                os.close(lock)
                raise StateError(
                    f"containers of an engine that was killed have not ended within {_END_TIMEOUT_S:.0f} s: they hold "
                    f"{path}. See who does with `fuser {path}`, end it, and start the engine again."
                ) from error
            await asyncio.sleep(_LOCK_EVERY_S)  # noqa: TID251 (the kernel tells nobody that a lock came free)
        else:
            return lock


class _LogReader(asyncio.Protocol):
    def __init__(self, on_data: Callable[[bytes], None], done: asyncio.Future[None]) -> None:
        self._on_data, self._done = on_data, done

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def _follow(
    descriptor: int, on_data: Callable[[bytes], None]
) -> tuple[asyncio.ReadTransport, asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    reader, _ = await loop.connect_read_pipe(lambda: _LogReader(on_data, done), os.fdopen(descriptor, "rb", 0))
    return reader, done
