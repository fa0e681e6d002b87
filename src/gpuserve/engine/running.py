"""An engine in a process of its own, seen from another process: found, asked, held, stopped.

Only the standard library is imported: a command that finds an engine up is to be quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gpuserve.exceptions import EngineError

__all__ = ["CONTROL", "Hold", "Running", "find_engine"]

# Where the note of a running engine, ``engine.json``, has the path of its control socket.
CONTROL = "GPUSERVE_CONTROL"
_ANSWER_LIMIT_S = 15.0
_PRUNE_LIMIT_S = 600.0
# Source: our choice; the containers' exit hooks run meanwhile.
_END_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """An engine that listens.

    Attributes:
        pid: Its process, as the kernel has it.
        environment: The variables that point a modal client at it, and away from any other.
    """

    pid: int
    environment: dict[str, str]
    control: str

    def status(self) -> dict[str, Any] | None:
        """The engine in figures; ``None`` if it is just ending."""
        with self._ask("status") as asked:
            reply = asked.reply()
        return None if "ending" in reply else reply

    def prune(self) -> dict[str, int]:
        """Remove the environments of images that no app uses; how many, and how many bytes that freed."""
        with self._ask("prune") as asked:
            reply = asked.reply(limit_s=_PRUNE_LIMIT_S)
        return {name: int(reply.get(name, 0)) for name in ("removed", "freed_bytes")}

    def hold(self) -> Hold | None:
        """Keep the engine up until the hold is released; ``None`` once it has ended instead."""
        asked = self._ask("hold")
        if "held" in asked.reply():
            return Hold(self, asked)
        asked.wait_for_end()
        return None

    def keep(self) -> bool:
        """Let the engine stay up when nobody holds it; false once it has ended instead."""
        with self._ask("keep") as asked:
            if "kept" in asked.reply():
                return True
            asked.wait_for_end()
            return False

    def stop(self) -> None:
        """End the engine, and wait until it has ended; what was deployed stays."""
        with self._ask("stop") as asked:
            asked.reply()
            asked.wait_for_end()

    def _ask(self, what: str) -> _Asked:
        try:
            return _Asked(self.control, {"token": self.environment["MODAL_TOKEN_SECRET"], "ask": what})
        except OSError as error:
            raise EngineError(f"the engine (pid {self.pid}) has just gone: {error}. Try again.") from error


class Hold:
    """Keeps an engine up until it is released, or this process ends in whatever way."""

    def __init__(self, engine: Running, asked: _Asked) -> None:
        """Keep the connection."""
        self.engine, self._asked = engine, asked

    def release(self) -> None:
        """Let go; where that ends the engine, wait until it has ended."""
        with self._asked as asked:
            asked.connection.shutdown(socket.SHUT_WR)
            if asked.reply().get("last", True):
                asked.wait_for_end()


class _Asked:
    """One request, and the process that answers it."""

    def __init__(self, path: str, request: dict[str, str]) -> None:
        self.connection, self.pid = _connect(path)
        with contextlib.ExitStack() as undo:
            undo.callback(self.connection.close)
            self._process = os.pidfd_open(self.pid)  # while it is connected: the pid cannot be another's
            undo.callback(os.close, self._process)
            self.connection.sendall(json.dumps(request).encode() + b"\n")
            self._replies = self.connection.makefile("rb")
            self._close = undo.pop_all()

    def reply(self, limit_s: float = _ANSWER_LIMIT_S) -> dict[str, Any]:
        """The next line; an engine that hangs up has ended."""
        self.connection.settimeout(limit_s)
        try:
            line = self._replies.readline()
        except TimeoutError as error:
            raise EngineError(
                f"the engine (pid {self.pid}) does not answer within {limit_s:.0f} s: kill {self.pid}"
            ) from error
        except ConnectionResetError:
            line = b""
        reply: dict[str, Any] = json.loads(line or b'{"ending": true}')
        if "error" in reply:
            raise EngineError(f"the engine (pid {self.pid}) refuses: {reply['error']}")
        return reply

    def wait_for_end(self) -> None:
        if not select.select([self._process], [], [], _END_LIMIT_S)[0]:
            raise EngineError(
                f"the engine (pid {self.pid}) did not end within {_END_LIMIT_S:.0f} s: kill -9 {self.pid}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._replies.close()
        self._close.close()


def _connect(path: str) -> tuple[socket.socket, int]:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except BaseException:
        connection.close()
        raise
    return connection, struct.unpack("3i", credentials)[0]


def find_engine(home: Path) -> Running | None:
    """The engine that runs on *home* in a process of its own, if one does.

    What its note says is believed only where its socket answers: the note of a killed engine stays, and its
    pid may be another process by now.
    """
    try:
        note: dict[str, Any] = json.loads((home / "engine.json").read_bytes())
        control = str(note[CONTROL])
        environment = {key: str(value) for key, value in note.items() if key.startswith("MODAL_")}
        connection, pid = _connect(control)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    connection.close()
    return Running(pid, environment, control)
