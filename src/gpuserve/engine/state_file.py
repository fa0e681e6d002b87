"""Whether a state file may be opened: looks at it, and changes no byte of it.

SQLite itself opens almost anything: it drops what follows a damaged frame of the write-ahead log without a
word, and it writes to a file as soon as it has opened it. So everything is looked at first, read-only.

Source:
    The file formats: sqlite.org/fileformat2.html, sections 1.3 (header) and 4 (write-ahead log).
"""

from __future__ import annotations

import errno
import sqlite3
import struct
from pathlib import Path
from urllib.parse import quote

from gpuserve.engine.home import unusable
from gpuserve.exceptions import StateError

__all__ = ["explained", "look_at", "wal_damage"]

_MAGIC = b"SQLite format 3\x00"
_LARGEST_PAGE = 65536  # stored as 1
_WAL_HEADER, _FRAME_HEADER = 32, 24
_WAL_MAGIC = 0x377F0682  # the lowest bit says that checksums read words big-endian
_AWAY = "Restore {path} from a copy, or move it away to start with an empty state."
_AWAY_LOG = "Restore both from a copy, or move the log away to start with an empty state."
_RECOVER = "Keep a copy of the folder and repair it (sqlite3 {path} .recover), or set GPUSERVE_HOME to another folder."


def look_at(path: Path, schema: int) -> None:
    """Refuse a state file that is damaged, or newer than *schema*; leave it as it is in any case.

    One that is not there yet is fine.

    Raises:
        StateError: With what was found, and the way out.
    """
    log = path.with_name(f"{path.name}-wal")
    head = _head(path)
    if head is None:
        if _has_content(log):
            raise _refusal(path, f"is missing, while its write-ahead log ({log.name}) is there", _AWAY_LOG)
        return
    if head != _MAGIC:
        found = "is empty" if not head else "is cut short" if _MAGIC.startswith(head) else "is not a database"
        raise _refusal(path, found, _AWAY)
    if not _has_content(log) and path.stat().st_size % _page_size(path):
        raise _refusal(path, "is cut short within a page", _AWAY)
    damage = wal_damage(log)
    if damage is not None:
        raise _refusal(path, f"has a damaged write-ahead log ({log.name}): {damage}", _RECOVER)
    # "immutable" keeps SQLite from making an empty log, but would also overlook one that is there
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            verdict = "ok" if version > schema else db.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise
        raise _refusal(path, f"is damaged: {error}", _RECOVER) from error
    if version > schema:
        raise StateError(
            f"the engine's state file {path} was written by a newer gpuserve: schema {version}, and this one knows "
            f"{schema}. Nothing was changed. Upgrade gpuserve, or set GPUSERVE_HOME to another folder."
        )
    if verdict != "ok":
        raise _refusal(path, f"is damaged: {' '.join(str(verdict).split())}", _RECOVER)


def explained(path: Path, error: sqlite3.DatabaseError) -> StateError:
    """What an error of SQLite on opening means for somebody who wants to use the file."""
    extended: int = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
        return unusable(path.parent, OSError(errno.ENOSPC, str(error)))
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}:
        return unusable(path.parent, OSError(errno.EACCES, str(error)))
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StateError(f"another program has the engine's state file {path} open: {error}. Close it, and try again.")
    return StateError(
        f"the engine's state file {path} cannot be used: {error}. Keep a copy of the folder, "
        f"then repair it (sqlite3 {path} .recover), or set GPUSERVE_HOME to another folder."
    )


def _head(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC))
    except FileNotFoundError:
        return None


def _has_content(log: Path) -> bool:
    return log.exists() and log.stat().st_size > 0


def _page_size(path: Path) -> int:
    with path.open("rb") as file:
        stored = int.from_bytes(file.read(18)[16:], "big")
    return _LARGEST_PAGE if stored == 1 else max(stored, 1)


def _refusal(path: Path, found: str, way_out: str) -> StateError:
    return StateError(f"the engine's state file {path} {found}. Nothing was changed. {way_out.format(path=path)}")


def wal_damage(path: Path) -> str | None:
    """What is wrong with a write-ahead log beyond what a power cut may leave; ``None`` if nothing is.

    A power cut may tear what was being written when it came: the last transaction, which nobody was told had
    been done. Each commit is synced before the next begins, so a bad frame with a commit and a further frame
    of the same generation behind it was whole once, and is damage.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _WAL_HEADER + _FRAME_HEADER:
        return None  # it was just being begun: nothing is in it yet
    magic, _format, page, _sequence, salt_1, salt_2, sum_1, sum_2 = struct.unpack(">8I", data[:_WAL_HEADER])
    order = ">" if magic & 1 else "<"
    running = _checksum(order, data[:24], (0, 0))
    if magic & ~1 != _WAL_MAGIC or running != (sum_1, sum_2):
        return "its header fails its checksum"
    frames = [
        struct.unpack(">6I", data[at : at + _FRAME_HEADER])
        for at in range(_WAL_HEADER, len(data) - _FRAME_HEADER - page + 1, _FRAME_HEADER + page)
    ]
    for number, (_page_no, _size, first, second, want_1, want_2) in enumerate(frames):
        at = _WAL_HEADER + number * (_FRAME_HEADER + page)
        if (first, second) == (salt_1, salt_2):
            running = _checksum(order, data[at : at + 8], running)
            running = _checksum(order, data[at + _FRAME_HEADER : at + _FRAME_HEADER + page], running)
            if running == (want_1, want_2):
                continue
        return _lost_behind(frames, number, (salt_1, salt_2))
    return None


def _lost_behind(frames: list[tuple[int, ...]], bad: int, salt: tuple[int, int]) -> str | None:
    ours = [number for number in range(bad + 1, len(frames)) if frames[number][2:4] == salt]
    last = ours[-1] if ours else bad
    if any(frames[number][1] for number in ours if number < last):
        return f"frame {bad + 1} of {len(frames)} fails its checksum, with finished transactions behind it"
    return None


def _checksum(order: str, data: bytes, start: tuple[int, int]) -> tuple[int, int]:
    first, second = start
    for left, right in struct.iter_unpack(f"{order}2I", data):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return first, second
