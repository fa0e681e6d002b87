"""The first process of a container: it starts the container's main process, and ends all that is left of it.

It lives as long as the container. What main started, a daemon that left its session and changed its
environment included, is a descendant of this process and stays one: in a pid namespace the kernel
says so, elsewhere because orphans fall to the nearest subreaper.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from gpuserve.engine.workers.links import lay_out
from gpuserve.engine.workers.namespaces import Isolation
from gpuserve.engine.workers.process_tree import descendants
from gpuserve.engine.workers.rootfs import enter_root
from gpuserve.exceptions import EngineError

__all__ = ["START_FAILED", "Warden", "die_with_parent", "keep_orphans"]

START_FAILED = 70  # EX_SOFTWARE of sysexits.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGINT, signal.SIGTERM)
_END = signal.SIGQUIT


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def keep_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Warden:
    """What a container's first process is given.

    Attributes:
        control: Where the container's end is told.
        lifeline: A pipe's end that becomes readable when the pre-forked process is gone.
        main: What the container's main process does; it does not return.
    """

    isolation: Isolation
    folder: Path
    descriptors: tuple[int, int]
    control: socket.socket
    lifeline: int
    main: Callable[[dict[str, Any]], NoReturn]

    def run(self) -> NoReturn:
        """Be the container's first process, from its root to its last descendant."""
        code = START_FAILED
        task_id = self.folder.name
        try:
            code = self._run()
        except EngineError as error:
            sys.stderr.write(f"{error}\n")
        except BaseException:  # noqa: BLE001 (the last line of a process: say why, then end)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            self._end_all()
            with contextlib.suppress(OSError):  # nobody is there to be told
                self.control.send(json.dumps({"task_id": task_id, "exit": code}).encode())
            os._exit(0)

    def _run(self) -> int:
        wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGCHLD, _END, *_FORWARDED):
            signal.signal(number, lambda _number, _frame: None)  # the number comes through the pipe
        if self.isolation.pids:
            die_with_parent()
        else:
            keep_orphans()
        for output, descriptor in enumerate(self.descriptors, start=1):
            os.dup2(descriptor, output)
            os.close(descriptor)
        request: dict[str, Any] = json.loads((self.folder / "request.json").read_text())
        (self.folder / "request.json").unlink()  # it holds the values of secrets
        if self.isolation.pids:
            _number_from(int(os.readlink("/proc/self")))  # noqa: PTH115 (a number, not a path)
        if self.isolation.mounts:
            enter_root(
                self.folder / "rootfs",
                request["files"],
                request["volumes"],
                hidden=request["hidden"],
                own_proc=self.isolation.pids,
            )
        else:
            lay_out(self.folder / "root", request["files"])
        # what is sent from here on waits until main can hear it
        signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        pid = os.fork()
        if pid == 0:
            os.close(self.lifeline)
            self.control.close()
            os.close(wake)
            signal.set_wakeup_fd(-1)
            os.close(wake_write)
            self.main(request)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        nothing = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):
            os.dup2(nothing, output)  # the log ends with the last process that writes to it
        return self._watch(pid, wake)

    def _watch(self, pid: int, wake: int) -> int:
        """Pass signals on to main, and reap; return main's exit code."""
        while True:
            readable, _, _ = select.select([wake, self.lifeline], [], [])
            if self.lifeline in readable:
                return -signal.SIGKILL
            for number in os.read(wake, 4096):
                if number == _END:
                    return -signal.SIGKILL
                if number in _FORWARDED:
                    os.kill(pid, number)
            code = _reap(pid)
            if code is not None:
                return code

    def _end_all(self) -> None:
        while True:
            if self.isolation.pids:
                try:
                    os.kill(-1, signal.SIGKILL)  # everything in this namespace but this process
                except ProcessLookupError:
                    return
            else:
                for pid in descendants(os.getpid()):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def _reap(wanted: int) -> int | None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return START_FAILED
        if pid == 0:
            return None
        if pid == wanted:
            return os.waitstatus_to_exitcode(status)


def _number_from(outside: int) -> None:
    """Give main a pid that no other container's main has: programs tell containers apart by it."""
    try:
        most = int(Path("/proc/sys/kernel/pid_max").read_text())
        Path("/proc/sys/kernel/ns_last_pid").write_text(str((outside + most // 2) % most))
    except OSError:
        return  # a kernel without this file counts from 2 in every container
