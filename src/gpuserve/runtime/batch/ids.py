"""Ids that were seen: 16 bytes an item in a file, and an index of them on disk, so that memory stays flat."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
from array import array
from pathlib import Path

from gpuserve.runtime.batch.rows import Window
from gpuserve.runtime.batch.trials import Failure, FailureKind

__all__ = ["KnownIds"]

_WIDTH = 16
_NONE = bytes(_WIDTH)
_BLOCK = 1 << 16


def _mark_of(one: str | int) -> bytes:
    kind = b"i" if isinstance(one, int) else b"s"
    return hashlib.blake2b(kind + str(one).encode("utf-8", "surrogatepass"), digest_size=_WIDTH).digest()


def _key_of(mark: bytes) -> int:
    return int.from_bytes(mark[:8], sys.byteorder, signed=True)  # as `array` reads it


class KnownIds:
    """Finds an id that came before, in this run or in one that it goes on with.

    The file is written at the item's own position, and what is written there depends on the input alone: a driver that
    was succeeded can write it again and change nothing.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._known: sqlite3.Connection | None = None

    def load(self, positions: int) -> None:
        """Index the ids of all that is committed."""
        self._known = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._known.execute("PRAGMA cache_size = -4096")  # KiB that stay in memory; our choice
        self._known.execute("PRAGMA journal_mode = OFF")  # it is made anew from the file by each driver
        self._known.execute("CREATE TABLE ids (position INTEGER PRIMARY KEY, key INTEGER NOT NULL)")
        self._known.execute("BEGIN")
        for first in range(0, positions, _BLOCK):
            keys = array("q", os.pread(self._file, min(_BLOCK, positions - first) * _WIDTH, first * _WIDTH))[::2]
            # one statement a block: a million rows bound one by one take twice the time
            self._known.execute(
                "INSERT INTO ids SELECT key + ?, value FROM json_each(?) WHERE value != 0",
                (first, json.dumps(keys.tolist())),
            )
        # sorted once at the end, which is several times as fast as keys put in their places one by one
        self._known.execute("CREATE INDEX ids_by_key ON ids (key)")
        self._known.execute("COMMIT")

    def add(self, window: Window) -> dict[int, Failure]:
        """Take a window's ids in; the places of those that were there before, and where."""
        if self._known is None:
            raise RuntimeError("load() comes first")
        marks = [_mark_of(item.id) for item in window.items]
        keys = [_key_of(one) for one in marks]
        rows = self._known.execute(
            "SELECT key, position FROM ids WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(keys),)
        )
        before: dict[int, list[int]] = {}
        for key, position in rows:
            before.setdefault(key, []).append(position)
        first = window.items[0].position
        doubled: dict[int, Failure] = {}
        here: dict[bytes, int] = {}
        for place, (key, mark) in enumerate(zip(keys, marks, strict=True)):
            item = window.items[place]
            if item.row.fault:
                marks[place] = _NONE
                continue
            known = here.get(mark)
            if known is None:
                known = next((position for position in before.get(key, ()) if self._same(position, mark)), None)
            if known is not None:
                message = f"the id {item.id!r} came before, at item {known} of the input; ids must be unique"
                doubled[place] = Failure(FailureKind.RAISED, "DuplicateId", message)
                marks[place] = _NONE
            else:
                here[mark] = first + place
        self._known.execute("BEGIN")
        self._known.executemany(
            "INSERT INTO ids VALUES (?, ?)",
            [(position, _key_of(one)) for one, position in here.items()],
        )
        self._known.execute("COMMIT")
        view, at = memoryview(b"".join(marks)), first * _WIDTH
        while view:  # a disk that is nearly full takes a part, and refuses the rest the next time
            count = os.pwrite(self._file, view, at)
            view, at = view[count:], at + count
        return doubled

    def _same(self, position: int, mark: bytes) -> bool:
        return os.pread(self._file, _WIDTH, position * _WIDTH) == mark

    def sync(self) -> None:
        """Make the file durable."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of both."""
        os.close(self._file)
        if self._known is not None:
            self._known.close()
