"""The last log lines of each app, streamed to whoever follows them.

Bounded: an app keeps its newest entries, and a reader that falls behind misses the oldest ones; of apps
that are done, the newest are kept.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace

from gpuserve.engine.protocol import api_pb2

__all__ = ["AppLogs", "LogEntry", "Logs", "Source", "batches"]

# Source: our choice. A client asks for at most 20,000 entries (modal 1.6.4, ``_FETCH_LIMIT``).
_MOST_ENTRIES = 20_000
_MOST_CHARACTERS = 32 << 20
_MOST_DONE_APPS = 200
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_STREAMS = {1: api_pb2.FILE_DESCRIPTOR_STDOUT, 2: api_pb2.FILE_DESCRIPTOR_STDERR}


@dataclass(frozen=True, slots=True)
class Source:
    """Where text came from; ``input_id`` and ``call_id`` are known where a container runs one input."""

    function_id: str = ""
    bound_id: str = ""
    task_id: str = ""
    input_id: str = ""
    call_id: str = ""
    descriptor: int = api_pb2.FILE_DESCRIPTOR_INFO


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line, or a piece of one, that a container wrote or that the engine says."""

    number: int
    at: float
    text: str
    source: Source


def batches(entries: Iterable[LogEntry]) -> list[api_pb2.TaskLogsBatch]:
    """Entries as the modal client wants them, those of one origin together."""
    found: list[api_pb2.TaskLogsBatch] = []
    last: tuple[str, ...] = ()
    for entry in entries:
        source = entry.source
        origin = (source.function_id, source.task_id, source.input_id)
        if not found or origin != last:
            last = origin
            found.append(
                api_pb2.TaskLogsBatch(
                    task_id=source.task_id,
                    function_id=source.function_id,
                    root_function_id=source.function_id,
                    input_id=source.input_id,
                )
            )
        found[-1].entry_id = f"{entry.number}-0"
        found[-1].items.add(
            data=entry.text,
            timestamp=entry.at,
            timestamp_ns=int(entry.at * 1e9),
            file_descriptor=source.descriptor,
            function_call_id=source.call_id,
            input_id=source.input_id,
            container_id=source.task_id,
        )
    return found


@dataclass(slots=True)
class AppLogs:
    """The log of one app: entries numbered from 1, the newest of them held."""

    entries: deque[LogEntry] = field(default_factory=deque)
    count: int = 0
    characters: int = 0
    done: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, text: str, source: Source) -> None:
        """Add one entry a line, and let go of the oldest where there are too many."""
        now = time.time()
        for line in _LINE.findall(text):
            self.count += 1
            self.entries.append(LogEntry(self.count, now, line, source))
        self.characters += len(text)
        while len(self.entries) > _MOST_ENTRIES or self.characters > _MOST_CHARACTERS:
            self.characters -= len(self.entries.popleft().text)
        self.wake()

    def wake(self) -> None:
        """Let every reader look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, number: int) -> list[LogEntry]:
        """The entries that are held after *number*, oldest first."""
        fresh: list[LogEntry] = []
        for entry in reversed(self.entries):
            if entry.number <= number:
                break
            fresh.append(entry)
        return fresh[::-1]

    async def follow(self, after: int, timeout_s: float | None = None) -> AsyncIterator[list[LogEntry]]:
        """Yield the entries after number *after* as they come, until the app is done.

        Raises:
            TimeoutError: When *timeout_s* has passed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            changed = self.changed
            fresh = self.after(after)
            if fresh:
                after = fresh[-1].number
                yield fresh
            else:
                if self.done:
                    return
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    await changed.wait()


class Logs:
    """The logs of all apps."""

    def __init__(self) -> None:
        """Start empty."""
        self._apps: OrderedDict[str, AppLogs] = OrderedDict()
        self._decoders: dict[tuple[str, int], codecs.IncrementalDecoder] = {}

    def of(self, app_id: str) -> AppLogs:
        """The log of one app, made on first use."""
        return self._apps.setdefault(app_id, AppLogs())

    def write(self, app_id: str, source: Source, descriptor: int, data: bytes, *, last: bool = False) -> None:
        """Add what a container wrote; a character cut in two waits for its other half, unless it is the *last*."""
        place = (source.task_id, descriptor)
        decoder = self._decoders.get(place)
        if decoder is None:
            decoder = self._decoders[place] = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(data, last)
        if text:
            origin = _STREAMS.get(descriptor, api_pb2.FILE_DESCRIPTOR_INFO)
            self.of(app_id).add(text, replace(source, descriptor=origin))
        if last:
            del self._decoders[place]

    def say(self, app_id: str, text: str, source: Source | None = None) -> None:
        """Add what the engine itself has to say."""
        self.of(app_id).add(text, source or Source())

    def finish(self, app_id: str) -> None:
        """No more will come for this app; of those that are done, the newest are kept."""
        log = self.of(app_id)
        log.done = True
        log.wake()
        self._apps.move_to_end(app_id)
        done = [ident for ident, one in self._apps.items() if one.done]
        for ident in done[:-_MOST_DONE_APPS]:
            del self._apps[ident]

    def reopen(self, app_id: str) -> None:
        """More may come again, e.g. an app deployed anew."""
        self.of(app_id).done = False

    def tail(self, app_id: str, task_id: str, lines: int = 20) -> str:
        """The last lines that one container wrote."""
        found: list[str] = []
        breaks = 0
        for entry in reversed(self.of(app_id).entries):
            if entry.source.task_id == task_id and entry.source.descriptor != api_pb2.FILE_DESCRIPTOR_INFO:
                found.append(entry.text)
                breaks += entry.text.count("\n")
                if breaks > lines:
                    break
        return "\n".join("".join(reversed(found)).splitlines()[-lines:])

    def forget_task(self, app_id: str, source: Source) -> None:
        """A container is gone: what half characters it left are shown as such."""
        for task_id, descriptor in list(self._decoders):
            if task_id == source.task_id:
                self.write(app_id, source, descriptor, b"", last=True)
