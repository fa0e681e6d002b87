"""What sources bring, and the windows that are made of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "AsyncReader",
    "Fields",
    "Item",
    "Reader",
    "Row",
    "Source",
    "Window",
    "bad_row",
    "input_bytes",
    "make_window",
]

# What a dead letter keeps of a row that could not be read. Source: our choice.
_MOST_RAW = 2000
_ADDRESS = re.compile(" at 0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        where: File and row, for people.
        value: What the target is to be called with.
        id: The item's own id; ``None`` to take its position.
        fault: Why it cannot be used; empty for a good row.
        fault_type: The kind of fault, as a dead letter names it.
        raw: The row's text, where it could not be read.
        encoded: The row's bytes, where they say what the input is.
    """

    where: str
    value: Any = None
    id: str | int | None = None
    fault: str = ""
    fault_type: str = ""
    raw: str = ""
    encoded: bytes | None = None


def bad_row(where: str, fault: str, raw: bytes | str = b"", fault_type: str = "UnreadableRow") -> Row:
    """A row that cannot be used, and why."""
    text = raw if isinstance(raw, str) else raw.decode("utf-8", "backslashreplace")
    return Row(where, fault=fault, fault_type=fault_type, raw=text[:_MOST_RAW], encoded=text.encode("utf-8", "replace"))


class Reader(Protocol):
    """Reads a source from some place on."""

    def read(self, most: int) -> Sequence[Row]:
        """The next rows, fewer only at the end."""

    def cursor(self) -> dict[str, Any]:
        """The place after what was read, to go on from; JSON."""

    def fraction(self) -> float | None:
        """How much of the source was read, 0 to 1, where that is known."""

    def close(self) -> None:
        """Let go of files."""


class AsyncReader(Protocol):
    """Reads an asynchronous source, in the loop that it belongs to."""

    async def aread(self, most: int) -> Sequence[Row]:
        """The next rows, fewer only at the end."""

    def cursor(self) -> dict[str, Any]:
        """The place after what was read, to go on from; JSON."""

    def fraction(self) -> float | None:
        """How much of the source was read, 0 to 1, where that is known."""

    def close(self) -> None:
        """Let go of files."""


class Source(Protocol):
    """Where items come from."""

    def identity(self) -> dict[str, Any]:
        """What tells this input from another, in JSON."""

    def total(self) -> int | None:
        """How many items there are, where that is known beforehand."""

    def open(self, cursor: dict[str, Any] | None) -> Reader | AsyncReader:
        """Read from the beginning, or from where *cursor* says."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of a row are the item.

    Attributes:
        id_field: The field with the item's id; ``None`` for its position.
        input_field: The field that the target is called with; ``None`` for the whole row.
    """

    id_field: str | None = None
    input_field: str | None = None

    def row(self, where: str, record: Any, encoded: bytes | None = None) -> Row:
        """The row that a record makes, or the fault that it has."""
        if self.id_field is None and self.input_field is None:
            return Row(where, record, encoded=encoded)
        if not isinstance(record, Mapping):
            found = type(record).__name__
            return bad_row(
                where, f"it is {found}, without fields; {self!r} was declared", repr(record), "SchemaChanged"
            )
        for field in (self.id_field, self.input_field):
            if field is not None and record.get(field) is None:
                known = ", ".join(map(str, list(record)[:20]))
                raw = encoded if encoded is not None else repr(record)
                return bad_row(where, f"it has no {field!r}; its fields are {known}", raw, "SchemaChanged")
        own = record[self.id_field] if self.id_field is not None else None
        if own is not None and (not isinstance(own, str | int) or isinstance(own, bool)):
            fault = f"its id, {self.id_field}={own!r}, is {type(own).__name__}; text or a whole number is allowed"
            return bad_row(where, fault, encoded if encoded is not None else repr(record))
        value = record[self.input_field] if self.input_field is not None else record
        return Row(where, value, own, encoded=encoded)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a window.

    Attributes:
        position: Its place in the corpus, from 0; bad rows have one too.
    """

    position: int
    id: str | int
    row: Row


@dataclass(frozen=True, slots=True)
class Window:
    """Items that are planned, and committed, together.

    Attributes:
        index: Its number, from 0.
        items: In input order.
        cursor: Where the source goes on after it.
        fingerprint: Of ids and inputs.
        total_before: Positions of all windows before it.
    """

    index: int
    items: tuple[Item, ...]
    cursor: dict[str, Any]
    fingerprint: str


def input_bytes(row: Row) -> bytes:
    """Bytes that tell one input from another: as it was read, else as JSON, else as it shows itself."""
    if row.encoded is not None:
        return row.encoded
    if isinstance(row.value, str):
        return row.value.encode("utf-8", "surrogatepass")
    return json.dumps(row.value, sort_keys=True, default=_shown, skipkeys=True).encode()


def _shown(value: Any) -> str:
    """What is no JSON: arrays by their bytes, the rest by its repr without addresses, which no two processes share."""
    if hasattr(value, "tobytes"):
        return f"{type(value).__name__} {getattr(value, 'shape', '')} {value.tobytes().hex()}"
    return _ADDRESS.sub("", repr(value))


def make_window(index: int, first: int, rows: Sequence[Row], cursor: dict[str, Any]) -> Window:
    """Number the rows and take their digest."""
    digest = hashlib.blake2b(digest_size=16)
    items = []
    for place, row in enumerate(rows):
        item = Item(first + place, row.id if row.id is not None else first + place, row)
        data = input_bytes(row)
        digest.update(b"%d:%d:%s:" % (item.position, len(data), str(item.id).encode("utf-8", "replace")))
        digest.update(data)
        items.append(item)
    return Window(index, tuple(items), cursor, digest.hexdigest())
