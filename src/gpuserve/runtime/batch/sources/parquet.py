"""Parquet files, a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuserve.exceptions import BadInputError
from gpuserve.runtime.batch.rows import Fields, Row, bad_row
from gpuserve.runtime.batch.sources.files import expanded, files_identity

__all__ = ["ParquetSource"]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ParquetSource:
    """Rows of Parquet files as dictionaries, or the one column that is named."""

    paths: tuple[str, ...]
    fields: Fields

    def identity(self) -> dict[str, Any]:
        """Names, sizes and digests of the files, and the fields."""
        return {"kind": "parquet", "files": files_identity(expanded(self.paths)), "fields": repr(self.fields)}

    def total(self) -> int | None:
        """Known from the files' ends."""
        return sum(int(_opened(path).metadata.num_rows) for path in expanded(self.paths))

    def open(self, cursor: dict[str, Any] | None) -> _ParquetReader:
        """Read from a row on."""
        return _ParquetReader(expanded(self.paths), cursor or {}, self)


def _opened(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadInputError(str(path), "", "Parquet needs pyarrow: pip install 'gpuserve[batch]'") from None
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(str(path), "", f"it is no Parquet file, or damaged: {error}") from None


class _ParquetReader:
    def __init__(self, files: Sequence[Path], cursor: dict[str, Any], source: ParquetSource) -> None:
        self._files, self._source = files, source
        self._file, self._row = int(cursor.get("file", 0)), int(cursor.get("row", 0))
        self._taken, self._total = int(cursor.get("taken", 0)), source.total() or 0
        fields = source.fields
        self._columns = None if fields.input_field is None else self._named(fields)
        self._types: dict[str, Any] = {}
        self._rows = self._read_on()

    @staticmethod
    def _named(fields: Fields) -> list[str]:
        return [one for one in (fields.id_field, fields.input_field) if one is not None]

    def read(self, most: int) -> list[Row]:
        rows: list[Row] = []
        for row in self._rows:
            rows.append(row)
            if len(rows) == most:
                break
        return rows

    def _read_on(self) -> Iterator[Row]:
        if self._files:
            self._same_types(self._files[0])
        while self._file < len(self._files):
            path = self._files[self._file]
            parquet = self._same_types(path)
            passed = 0
            for group in range(parquet.metadata.num_row_groups):
                count = parquet.metadata.row_group(group).num_rows
                if passed + count > self._row:
                    yield from self._group(path, parquet, group, passed, count)
                passed += count
            parquet.close()
            self._file, self._row = self._file + 1, 0

    def _group(self, path: Path, parquet: Any, group: int, passed: int, count: int) -> Iterator[Row]:
        import pyarrow as pa

        begin = self._row
        try:
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=self._columns):
                first, passed = passed, passed + batch.num_rows
                if passed <= begin:
                    continue
                skipped = max(0, begin - first)
                for place, record in enumerate(batch.slice(skipped).to_pylist(), first + skipped):
                    self._row, self._taken = place + 1, self._taken + 1
                    yield self._source.fields.row(f"{path} row {place}", record)
        except (pa.ArrowException, OSError) as error:
            last = parquet.metadata.row_group(group).num_rows and passed + count - 1
            first, self._row = self._row, max(self._row, last + 1)
            self._taken += self._row - first
            yield bad_row(f"{path} rows {first} to {self._row - 1}", f"row group {group} cannot be read: {error}")

    def _same_types(self, path: Path) -> Any:
        parquet = _opened(path)
        found = {field.name: field.type for field in parquet.schema_arrow}
        wanted = self._columns if self._columns is not None else list(found)
        missing = [name for name in wanted if name not in found]
        if missing:
            known = ", ".join(found)
            raise BadInputError(str(path), "", f"it has no column {', '.join(missing)}; its columns are {known}")
        types = {name: found[name] for name in wanted}
        if self._types and types != self._types:
            for name in sorted({*types, *self._types}):
                before, now = self._types.get(name, "missing"), types.get(name, "missing")
                if before != now:
                    fault = f"column {name!r} is {now}, and in {self._files[0]} it is {before}; convert one of them"
                    raise BadInputError(str(path), "", fault)
        self._types = types
        return parquet

    def cursor(self) -> dict[str, Any]:
        return {"file": self._file, "row": self._row, "taken": self._taken}

    def fraction(self) -> float | None:
        return self._taken / self._total if self._total else None

    def close(self) -> None:
        """Files are closed as they are left."""
