"""The pre-forked process: it imports Modal's container runtime once there is an app, and forks containers on request.

Started by `launcher.py` as ``python -m gpuserve.engine.workers.zygote FD ENGINE_PID FOLDER ISOLATION LOCK``.
It has one thread, holds none of the engine's descriptors but its socket and a lock, and dies with the engine.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
from functools import cache, partial
from pathlib import Path

from gpuserve.engine.protocol import ContainerRuntime, container_runtime
from gpuserve.engine.workers.container_main import become_container
from gpuserve.engine.workers.import_guard import installed
from gpuserve.engine.workers.namespaces import Isolation, isolation_here
from gpuserve.engine.workers.process_tree import descendants
from gpuserve.engine.workers.warden import Warden, die_with_parent, keep_orphans
from gpuserve.exceptions import EngineError

__all__ = ["main"]


def main(control: socket.socket, engine_pid: int, folder: Path, wanted: str) -> None:
    """Serve requests until the engine is gone, then see every container to its end."""
    keep_orphans()
    # the socket's end tells as well, unless a fork of the engine's process holds it open
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    die_with_parent(signal.SIGTERM)
    lifeline, held = os.pipe2(os.O_CLOEXEC)  # its other end closes when this process leaves
    me = os.getpid()
    wardens: dict[int, str] = {}
    try:
        _serve(control, engine_pid, folder, wanted, (lifeline, held), wardens)
    except ConnectionError:
        pass  # the engine has gone in the middle of a message
    finally:
        if os.getpid() == me:
            os.close(held)
            _wait_for(wardens)


def _serve(
    control: socket.socket,
    engine_pid: int,
    folder: Path,
    wanted: str,
    lifeline: tuple[int, int],
    wardens: dict[int, str],
) -> None:
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write)
    try:
        isolation = isolation_here(folder, wanted)
    except EngineError as error:
        control.send(json.dumps({"refused": str(error)}).encode())
        return
    about = {"ready": str(isolation), "mounts": isolation.mounts, "pids": isolation.pids}
    control.send(json.dumps(about).encode())
    while os.getppid() == engine_pid:
        readable, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap(control, wardens, isolation)
        if control.fileno() in readable:
            message, descriptors, _flags, _address = socket.recv_fds(control, 65536, 2)
            if not message:
                return
            told = json.loads(message)
            runtime = _runtime()
            if "task_id" not in told:
                continue
            task_id = told["task_id"]
            pid = isolation.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for inherited in (lifeline[1], wake_read, wake_write):
                    os.close(inherited)
                place = folder / task_id
                main_of_it = partial(become_container, runtime, isolation, place)
                Warden(isolation, place, (descriptors[0], descriptors[1]), control, lifeline[0], main_of_it).run()
            for descriptor in descriptors:
                os.close(descriptor)
            wardens[pid] = task_id
            control.send(json.dumps({"task_id": task_id, "pid": pid}).encode())


@cache
def _runtime() -> ContainerRuntime:
    """All that containers share: what is imported and read here costs none of them anything."""
    gc.disable()  # imports make no garbage worth looking for
    try:
        runtime = container_runtime()
        installed()
    finally:
        gc.enable()
    gc.freeze()  # a container that looks for garbage need not copy these pages
    return runtime


def _wait_for(wardens: dict[int, str]) -> None:
    """Wait until every container's first process has ended what is its, and itself."""
    while True:
        _end_orphans(set(wardens))
        try:
            pid, _status = os.waitpid(-1, 0)
        except ChildProcessError:
            return
        wardens.pop(pid, None)


def _reap(control: socket.socket, wardens: dict[int, str], isolation: Isolation) -> None:
    """Tell which containers' first processes have ended; those that could have told it themselves."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        task_id = wardens.pop(pid, None)
        if task_id is None:
            continue
        if not isolation.pids:
            _end_orphans(set(wardens))
        event = {"task_id": task_id, "exit": os.waitstatus_to_exitcode(status)}
        control.send(json.dumps(event).encode())


def _end_orphans(wardens: set[int]) -> None:
    """Kill what a container's first process left behind when it was itself killed."""
    kept = set(wardens)
    for warden in wardens:
        kept |= descendants(warden)
    for pid in descendants(os.getpid()) - kept:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    # held until this process and all that it forks have ended: the next engine waits for that
    os.set_inheritable(int(sys.argv[5]), False)
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
