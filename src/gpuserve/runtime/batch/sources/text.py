"""Lines of JSON, and CSV: read a line at a time, with the byte that each begins at."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gpuserve.exceptions import BadInputError
from gpuserve.runtime.batch.rows import Fields, Row, bad_row
from gpuserve.runtime.batch.sources.files import expanded, files_identity

__all__ = ["CsvSource", "JsonlSource"]

# A line that is longer is no row of anything. Source: our choice.
_LONGEST_ROW = 64 << 20
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")


class _Lines:
    """The lines of one file, and the byte after the last of them."""

    def __init__(self, path: Path, offset: int, number: int) -> None:
        self.path, self.number = path, number
        self._file: BinaryIO = path.open("rb")
        head = self._file.read(4)
        if head[:2] in _WIDE_BOMS:
            self._file.close()
            raise BadInputError(str(path), "byte 0", "it is UTF-16 or UTF-32; convert it: iconv -f UTF-16 -t UTF-8")
        self.offset = max(offset, len(_BOM) if head.startswith(_BOM) else 0)
        self._file.seek(self.offset)

    def next(self) -> bytes:
        """The next line with its end; empty at the end of the file."""
        line = self._file.readline(_LONGEST_ROW)
        self.offset += len(line)
        self.number += bool(line)
        return line

    def go_back(self, offset: int, number: int) -> None:
        self._file.seek(offset)
        self.offset, self.number = offset, number

    def close(self) -> None:
        self._file.close()


class _TextReader(ABC):
    """Goes from file to file; what a row is, its subclasses know."""

    def __init__(self, files: Sequence[Path], cursor: dict[str, Any] | None) -> None:
        self._files = files
        at = cursor or {"file": 0, "byte": 0, "row": 0}
        self._index = int(at["file"])
        self._sizes = [path.stat().st_size for path in files]
        self._lines: _Lines | None = None
        self._at = (int(at["byte"]), int(at["row"]))
        self._state = at.get("state")

    def read(self, most: int) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < most and self._index < len(self._files):
            if self._lines is None:
                self._lines = _Lines(self._files[self._index], *self._at)
                self._begin(self._lines, fresh=self._at[0] == 0)
            row = self._row(self._lines)
            if row is not None:
                rows.append(row)
                continue
            self._lines.close()
            self._lines, self._at = None, (0, 0)
            self._index += 1
        return rows

    def cursor(self) -> dict[str, Any]:
        byte, row = (self._lines.offset, self._lines.number) if self._lines is not None else self._at
        return {"file": self._index, "byte": byte, "row": row, "state": self._state}

    def fraction(self) -> float | None:
        here = self._lines.offset if self._lines is not None else self._at[0]
        return (sum(self._sizes[: self._index]) + here) / (sum(self._sizes) or 1)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()

    @abstractmethod
    def _begin(self, lines: _Lines, *, fresh: bool) -> None:
        """A file was opened; *fresh* at its beginning."""

    @abstractmethod
    def _row(self, lines: _Lines) -> Row | None:
        """The next row; ``None`` at the end of the file."""


def _where(lines: _Lines, row: int) -> str:
    return f"{lines.path} row {row}"


@dataclass(frozen=True)
class JsonlSource:
    """Lines of JSON: each an object or a plain value; empty lines are passed over."""

    paths: tuple[str, ...]
    fields: Fields
    encoding: str = "utf-8"

    def identity(self) -> dict[str, Any]:
        """Names, sizes and digests of the files, and the fields."""
        return {"kind": "jsonl", "files": files_identity(expanded(self.paths)), "fields": repr(self.fields)}

    def total(self) -> int | None:
        """Not known before all lines are read."""
        return None

    def open(self, cursor: dict[str, Any] | None) -> _JsonlReader:
        """Read from a line on."""
        return _JsonlReader(expanded(self.paths), cursor, self.fields, self.encoding)


class _JsonlReader(_TextReader):
    def __init__(self, files: Sequence[Path], cursor: dict[str, Any] | None, fields: Fields, encoding: str) -> None:
        super().__init__(files, cursor)
        self._fields, self._encoding = fields, encoding

    def _begin(self, lines: _Lines, *, fresh: bool) -> None:
        """There is no header."""

    def _row(self, lines: _Lines) -> Row | None:
        while line := lines.next():
            if not line.isspace():
                return self._parsed(lines, line)
        return None

    def _parsed(self, lines: _Lines, line: bytes) -> Row:
        where = _where(lines, lines.number)
        begin = lines.offset - len(line)
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError as error:
            return bad_row(where, _encoding_fault(error, begin, self._encoding), line, "UnreadableEncoding")
        try:
            record = json.loads(text)
        except ValueError as error:
            return bad_row(where, f"it is no JSON: {error}", line)
        except RecursionError:
            return bad_row(where, "it is JSON that is nested too deeply", line)
        row = self._fields.row(where, record, line.rstrip(b"\r\n"))
        if row.fault:
            return row
        self._state, fault = kind_checked(self._state, row.value)
        return bad_row(where, fault, line, "SchemaChanged") if fault else row


def _encoding_fault(error: UnicodeError, begin: int, encoding: str) -> str:
    start = error.start if isinstance(error, UnicodeDecodeError) else 0
    byte = error.object[start] if isinstance(error, UnicodeDecodeError) else 0
    return f"byte {begin + start} of the file, 0x{byte:02x}, is not {encoding}"


_NAMES = {str: "text", bool: "true or false", int: "number", float: "number", list: "list", dict: "object"}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), "nothing")


def kind_checked(state: dict[str, str] | None, value: Any) -> tuple[dict[str, str], str]:
    """Whether a value is of the kind that the ones before were of; fields may come and go, and be nothing.

    Returns:
        The kinds that are known now, by field (the value itself by an empty name), and the fault, if there is one.

    Examples:
        >>> known, fault = kind_checked(None, {"text": "a"})
        >>> kind_checked(known, {"text": 5})[1]
        "the kind of 'text' has changed: it was text, and is number"
    """
    known = state if state is not None else {}
    found = {"": _kind(value)}
    if isinstance(value, dict):
        found |= {name: _kind(one) for name, one in value.items() if name}
    for name, kind in found.items():
        before = known.get(name, kind)
        if "nothing" not in {kind, before} and kind != before:
            of = f"the kind of {name!r}" if name else "the kind of the rows"
            return known, f"{of} has changed: it was {before}, and is {kind}"
    added = {name: kind for name, kind in found.items() if kind != "nothing" and name not in known}
    return {**known, **added} if added else known, ""


@dataclass(frozen=True)
class CsvSource:
    """Comma-separated values with a header; every value is text."""

    paths: tuple[str, ...]
    fields: Fields
    encoding: str = "utf-8"
    delimiter: str = ","

    def identity(self) -> dict[str, Any]:
        """Names, sizes and digests of the files, and the fields."""
        files = files_identity(expanded(self.paths))
        return {"kind": "csv", "files": files, "fields": repr(self.fields), "delimiter": self.delimiter}

    def total(self) -> int | None:
        """Not known before all rows are read."""
        return None

    def open(self, cursor: dict[str, Any] | None) -> _CsvReader:
        """Read from a row on."""
        return _CsvReader(expanded(self.paths), cursor, self)


class _CsvReader(_TextReader):
    def __init__(self, files: Sequence[Path], cursor: dict[str, Any] | None, declared: CsvSource) -> None:
        super().__init__(files, cursor)
        self._declared = declared
        self._header: list[str] = []
        self._first: list[str] = (self._state or {}).get("header", [])
        self._moved = ""

    def _begin(self, lines: _Lines, *, fresh: bool) -> None:
        head = lines
        if not fresh:
            head = _Lines(lines.path, 0, 0)
        parsed = self._values(head)
        self._header = parsed[0] if parsed is not None and parsed[0] else []
        if head is not lines:
            head.close()
        if not self._first:
            self._first = self._header
            self._state = {"header": self._header}
        doubled = sorted({name for name in self._header if self._header.count(name) > 1})
        if doubled:
            raise BadInputError(str(lines.path), "row 1", f"its header names {', '.join(doubled)} twice; rename one")
        gone = [name for name in self._first if name not in self._header]
        come = [name for name in self._header if name not in self._first]
        told = [f"without {', '.join(gone)}"] * bool(gone) + [f"with {', '.join(come)}"] * bool(come)
        self._moved = f"its columns are not those of {self._files[0]}: {' and '.join(told)}" if told else ""

    def _row(self, lines: _Lines) -> Row | None:
        begin, number = lines.offset, lines.number
        try:
            parsed = self._values(lines)
        except csv.Error as error:
            lines.go_back(begin, number)  # what an open quote has swallowed is read again, a line at a time
            raw = lines.next()
            return bad_row(_where(lines, lines.number), f"it is no CSV: {error}", raw)
        if parsed is None:
            return None
        values, raw = parsed
        where = _where(lines, number + 1)
        if not values:
            return self._row(lines)
        spoilt = next(
            (
                place
                for place, byte in enumerate(raw.decode(self._declared.encoding, "surrogateescape"))
                if "\udc80" <= byte <= "\udcff"
            ),
            None,
        )
        if spoilt is not None:
            try:
                raw.decode(self._declared.encoding)
            except UnicodeDecodeError as error:
                fault = _encoding_fault(error, begin, self._declared.encoding)
                return bad_row(where, fault, raw, "UnreadableEncoding")
        if self._moved:
            return bad_row(where, self._moved, raw, "SchemaChanged")
        if len(values) != len(self._header):
            fault = f"it has {len(values)} values, and the header names {len(self._header)}"
            return bad_row(where, fault, raw, "SchemaChanged")
        return self._declared.fields.row(where, dict(zip(self._header, values, strict=True)), raw.rstrip(b"\r\n"))

    def _values(self, lines: _Lines) -> tuple[list[str], bytes] | None:
        taken: list[bytes] = []

        def texts() -> Iterator[str]:
            while line := lines.next():
                taken.append(line)
                yield line.decode(self._declared.encoding, "surrogateescape")

        for values in csv.reader(texts(), delimiter=self._declared.delimiter, strict=True):
            return values, b"".join(taken)
        return None
