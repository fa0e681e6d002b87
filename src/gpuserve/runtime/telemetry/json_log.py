"""Lines of JSON, written by a thread of their own, so that no request waits for a disk or a pipe."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from gpuserve.exceptions import DeclarationError
from gpuserve.runtime.telemetry.record import RequestRecord
from gpuserve.runtime.telemetry.redact import redactor

__all__ = ["JsonLog"]

# Lines that may wait: a second of the most that one process answers.
_MOST_WAITING = 10_000
# Seconds that lines gather before they are written in one piece.
_GATHER_S = 0.05


class JsonLog:
    """Adds a line a request and an event to the container's log, or to a file.

    Nothing that is put waits: where the writer cannot keep up, lines are dropped, and the next line says
    how many.

    Args:
        model: Whose requests they are.
        file: Where the lines go; the container's standard output unless given.
        most_waiting: Lines that may wait.

    Raises:
        DeclarationError: If the file cannot be opened.
    """

    def __init__(self, model: str, file: Path | None = None, most_waiting: int = _MOST_WAITING) -> None:
        self._model = model
        self._file: TextIO | None = None
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                self._file = file.open("a", encoding="utf-8")
            except OSError as error:
                fault = f"file got {str(file)!r}, which cannot be written: {error.strerror}"
                raise DeclarationError("Telemetry", (fault,)) from None
        self._most_waiting = most_waiting
        self._waiting: deque[RequestRecord | dict[str, Any]] = deque()
        self._dropped = 0
        self._awake = False
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, entry: RequestRecord | dict[str, Any]) -> None:
        """Have *entry* written soon."""
        if len(self._waiting) >= self._most_waiting or self._closing.is_set():
            self._dropped += 1
            return
        self._waiting.append(entry)
        if not self._awake:
            self._awake = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="gpuserve-log", daemon=True)
                self._thread.start()
            self._wake.set()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, for *timeout_s* at most; what comes later is dropped."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            leaving = self._closing.wait(_GATHER_S)
            self._awake = False
            self._write()
            if leaving:
                return

    def _write(self) -> None:
        lines = []
        while self._waiting:
            entry = self._waiting.popleft()
            lines.append(json.dumps(entry.as_event(self._model) if isinstance(entry, RequestRecord) else entry))
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(json.dumps({"event": "log_dropped", "model": self._model, "lines": dropped}))
        if not lines:
            return
        target = self._file if self._file is not None else sys.stdout
        try:
            target.write(redactor("\n".join(lines)) + "\n")
            target.flush()
        except (OSError, ValueError) as error:
            # a full disk or a closed pipe: told where that is still possible, and tried again with the next line
            sys.stderr.write(f"{len(lines)} lines of the log could not be written: {error}\n")
