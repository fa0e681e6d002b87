"""The last log lines of each app, streamed to whoever follows them.

Bounded: an app keeps its newest entries, and a reader that falls behind misses the oldest ones.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gpuserve.engine.protocol import api_pb2

__all__ = ["AppLogs", "LogEntry", "Logs"]

_MOST_ENTRIES = 20_000
_STREAMS = {1: api_pb2.FILE_DESCRIPTOR_STDOUT, 2: api_pb2.FILE_DESCRIPTOR_STDERR}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One piece of text that a container wrote."""

    number: int
    at: float
    text: str
    descriptor: int
    function_id: str
    task_id: str

    def batch(self) -> api_pb2.TaskLogsBatch:
        """The entry as the modal client wants it."""
        item = api_pb2.TaskLogs(
            data=self.text,
            timestamp=self.at,
            timestamp_ns=int(self.at * 1e9),
            file_descriptor=self.descriptor,  # type: ignore[arg-type]
        )
        return api_pb2.TaskLogsBatch(
            task_id=self.task_id,
            function_id=self.function_id,
            root_function_id=self.function_id,
            entry_id=f"{self.number}-0",
            items=[item],
        )


@dataclass(slots=True)
class AppLogs:
    """The log of one app."""

    entries: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=_MOST_ENTRIES))
    count: int = 0
    done: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Let every reader look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def follow(self, after: int) -> AsyncIterator[LogEntry]:
        """Yield entries after number *after* as they come, until the app is done."""
        while True:
            changed = self.changed
            fresh = [entry for entry in self.entries if entry.number > after]
            for entry in fresh:
                after = entry.number
                yield entry
            if not fresh:
                if self.done:
                    return
                await changed.wait()


class Logs:
    """The logs of all apps."""

    def __init__(self) -> None:
        """Start empty."""
        self._apps: dict[str, AppLogs] = {}
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}

    def of(self, app_id: str) -> AppLogs:
        """The log of one app, made on first use."""
        return self._apps.setdefault(app_id, AppLogs())

    def write(self, app_id: str, function_id: str, task_id: str, descriptor: int, data: bytes) -> None:
        """Add what a container wrote; a character cut in two waits for its other half."""
        decoder = self._decoders.get((task_id, descriptor))
        if decoder is None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            self._decoders[task_id, descriptor] = decoder
        text = decoder.decode(data)
        if text:
            self.say(app_id, text, function_id=function_id, task_id=task_id, descriptor=descriptor)

    def say(self, app_id: str, text: str, *, function_id: str = "", task_id: str = "", descriptor: int = 2) -> None:
        """Add one entry."""
        log = self.of(app_id)
        log.count += 1
        source = _STREAMS.get(descriptor, api_pb2.FILE_DESCRIPTOR_INFO)
        log.entries.append(LogEntry(log.count, time.time(), text, source, function_id, task_id))
        log.wake()

    def finish(self, app_id: str) -> None:
        """No more will come for this app."""
        log = self.of(app_id)
        log.done = True
        log.wake()

    def reopen(self, app_id: str) -> None:
        """More may come again, e.g. an app deployed anew."""
        self.of(app_id).done = False

    def tail(self, app_id: str, task_id: str, lines: int = 20) -> str:
        """The last lines that one container wrote."""
        text = "".join(entry.text for entry in self.of(app_id).entries if entry.task_id == task_id)
        return "\n".join(text.splitlines()[-lines:])

    def forget_task(self, task_id: str) -> None:
        """Drop the half characters of a container that is gone."""
        for key in [key for key in self._decoders if key[0] == task_id]:
            del self._decoders[key]
