"""The pre-forked process: it has imported Modal's container runtime, and forks containers on request.

Started by `launcher.py` as ``python -m gpuserve.engine.workers.zygote FD ENGINE_PID``. It has one
thread, holds none of the engine's descriptors but its socket, and dies with the engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

from gpuserve.engine.protocol import container_runtime
from gpuserve.engine.workers.container_main import become_container
from gpuserve.engine.workers.import_guard import installed_modules
from gpuserve.engine.workers.namespaces import isolation_here

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(control: socket.socket, engine_pid: int) -> None:
    """Serve requests until the engine is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != engine_pid:
        return
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write)
    tasks: dict[int, str] = {}
    runtime = container_runtime()
    installed_modules()  # read now, so that no container has to
    control.send(json.dumps({"ready": isolation_here()}).encode())
    while True:
        readable, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            _report_exits(control, tasks)
        if control.fileno() in readable:
            message, descriptors, _flags, _address = socket.recv_fds(control, 65536, 2)
            if not message:
                return
            request = json.loads(message)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                os.close(wake_read)
                os.close(wake_write)
                become_container(runtime, Path(request["folder"]), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            tasks[pid] = request["task_id"]
            control.send(json.dumps({"task_id": request["task_id"], "pid": pid}).encode())


def _report_exits(control: socket.socket, tasks: dict[int, str]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        task_id = tasks.pop(pid, None)  # a grandchild that was left to us has none
        if task_id is not None:
            event = {"task_id": task_id, "exit": os.waitstatus_to_exitcode(status)}
            control.send(json.dumps(event).encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
