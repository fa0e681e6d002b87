"""The engine's own switch: a unix socket on which an engine in a process of its own can be asked and stopped.

One connection carries one line of JSON each way: ``{"token": …, "ask": "status"}``, or "prune", "hold", "keep", "stop".
A connection that asked to *hold* stays open: a transient engine ends when the last of them has closed, which
the kernel does for a client that was killed, too.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import signal
import socketserver
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpuserve.exceptions import EngineError

__all__ = ["Control", "Ending"]

_LONGEST_REQUEST = 4096


class Ending:
    """Whether a process is to end: asked for by a signal, by `Control`, or by both.

    A `threading.Event` would not do. Set in a signal's handler while the same thread is about to wait, each waits
    for the other's lock; and a signal that comes just before the wait begins leaves its handler unrun until the
    wait ends. A pipe that the signal itself is written to has neither gap.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        """Listen for *signals* from now on; in the main thread alone."""
        self._asked = False
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda _number, _frame: self.set())

    def set(self) -> None:
        """Ask for the end."""
        self._asked = True
        with contextlib.suppress(BlockingIOError):  # full of what wakes as well
            os.write(self._wake, b"\0")

    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self._asked

    def wait(self) -> None:
        """Return once somebody asks, or at once if somebody did."""
        while not self._asked:
            os.read(self._woken, 4096)


class Control:
    """Listens until it is closed.

    Args:
        path: The socket.
        token: What every request must carry.
        asked: What is answered with figures, by its name: ``status`` and ``prune``.
        stop: Set when the engine is to end.
        transient: Whether to end when nobody holds the engine; one holder is counted from the start.
    """

    def __init__(
        self,
        path: Path,
        token: str,
        asked: Mapping[str, Callable[[], Mapping[str, Any]]],
        stop: Ending,
        *,
        transient: bool,
    ) -> None:
        """Listen at once."""
        self._token, self._asked, self._stop = token, asked, stop
        self._transient, self._holders = transient, int(transient)
        self._guard = threading.Lock()
        self._server = _Server(str(path), self)
        path.chmod(0o600)
        self._thread = threading.Thread(target=self._server.serve_forever, name="gpuserve-control", daemon=True)
        self._thread.start()

    def enter(self) -> bool:
        """Count one holder more; false if the engine is ending already."""
        with self._guard:
            if self._stop.is_set():
                return False
            self._holders += 1
            return True

    def leave(self) -> bool:
        """Count one holder less; true if that ends the engine."""
        with self._guard:
            self._holders -= 1
            if self._transient and not self._holders:
                self._stop.set()
            return self._stop.is_set()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What to reply to one request."""
        if not hmac.compare_digest(str(request.get("token")).encode(), self._token.encode()):
            return {"error": "the token is missing or wrong"}
        if self._stop.is_set():
            return {"ending": True}
        ask = request.get("ask")
        if ask == "hold":
            return {"held": True} if self.enter() else {"ending": True}
        if ask == "keep":
            with self._guard:
                self._transient = False
            return {"kept": True} if not self._stop.is_set() else {"ending": True}
        if ask == "stop":
            self._stop.set()
            return {"ending": True}
        if ask in self._asked:
            return self._figures(str(ask))
        return {"error": f"ask={ask!r} is not known: {', '.join(self._asked)}, hold, keep or stop"}

    def _figures(self, ask: str) -> dict[str, Any]:
        try:
            return {**self._asked[ask](), "transient": self._transient, "holders": self._holders}
        except TimeoutError:
            return {"error": "it is stuck, its loop does not answer; see its log"}
        except EngineError:
            return {"ending": True}

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, control: Control) -> None:
        super().__init__(path, _Connection)
        self.control = control


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        control = self.server.control
        with contextlib.suppress(OSError, ValueError):  # it hung up, or speaks something else
            request = json.loads(self.rfile.readline(_LONGEST_REQUEST))
            reply = control.answer(request if isinstance(request, dict) else {})
            if "held" not in reply:
                self._send(reply)
                return
            try:
                self._send(reply)
                while self.rfile.read(1):
                    pass
            finally:
                last = control.leave()
            self._send({"last": last})

    def _send(self, reply: Mapping[str, Any]) -> None:
        self.wfile.write(json.dumps(reply).encode() + b"\n")
