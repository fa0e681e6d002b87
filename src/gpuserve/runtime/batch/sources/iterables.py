"""Iterables, async iterables and Hugging Face datasets: what is in memory, or comes from code."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpuserve.exceptions import BadInputError
from gpuserve.runtime.batch.rows import Fields, Row

__all__ = ["AsyncItemsSource", "DatasetSource", "ItemsSource"]


@dataclass(frozen=True)
class ItemsSource:
    """Any iterable; to resume, it must bring the same items again, and those that are settled are passed over.

    Attributes:
        items: The iterable, or a function that makes it.
        name: What the items are called in messages, and what tells this input from another.
    """

    items: Iterable[Any] | Callable[[], Iterable[Any]]
    fields: Fields
    name: str = "items"

    def identity(self) -> dict[str, Any]:
        """The name, the fields, and the number of items where there is one."""
        return {"kind": "items", "name": self.name, "fields": repr(self.fields), "total": self.total()}

    def total(self) -> int | None:
        """Known for whatever has a length."""
        try:
            return len(self.items)  # type: ignore[arg-type]
        except TypeError:
            return None

    def open(self, cursor: dict[str, Any] | None) -> _ItemsReader:
        """Iterate anew, past what is settled."""
        made = self.items() if callable(self.items) else self.items
        taken = int((cursor or {}).get("taken", 0))
        if isinstance(made, Sequence):
            return _ItemsReader(map(made.__getitem__, range(taken, len(made))), taken, self)
        return _ItemsReader(itertools.islice(iter(made), taken, None), taken, self)


class _ItemsReader:
    def __init__(self, iterator: Iterator[Any], taken: int, source: ItemsSource) -> None:
        self._iterator, self._taken, self._source = iterator, taken, source
        self._total = source.total()

    def read(self, most: int) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < most:
            where = f"{self._source.name} {self._taken}"
            try:
                value = next(self._iterator)
            except StopIteration:
                break
            except Exception as error:
                raise BadInputError(self._source.name, f"item {self._taken}", f"it raised {error!r}") from error
            rows.append(self._source.fields.row(where, value))
            self._taken += 1
        return rows

    def cursor(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def fraction(self) -> float | None:
        return self._taken / self._total if self._total else None

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class AsyncItemsSource:
    """An async iterable, or a function that makes one; iterated in the loop that the run is in."""

    items: Any
    fields: Fields
    name: str = "items"

    def identity(self) -> dict[str, Any]:
        """The name and the fields."""
        return {"kind": "items", "name": self.name, "fields": repr(self.fields), "total": None}

    def total(self) -> int | None:
        """Not known."""
        return None

    def open(self, cursor: dict[str, Any] | None) -> _AsyncItemsReader:
        """Iterate anew, past what is settled."""
        made = self.items() if callable(self.items) else self.items
        return _AsyncItemsReader(aiter(made), int((cursor or {}).get("taken", 0)), self)


class _AsyncItemsReader:
    def __init__(self, iterator: AsyncIterator[Any], skip: int, source: AsyncItemsSource) -> None:
        self._iterator, self._skip, self._source = iterator, skip, source
        self._taken = 0

    async def aread(self, most: int) -> list[Row]:
        rows: list[Row] = []
        while len(rows) < most:
            where = f"{self._source.name} {self._taken}"
            try:
                value = await anext(self._iterator)
            except StopAsyncIteration:
                break
            except Exception as error:
                raise BadInputError(self._source.name, f"item {self._taken}", f"it raised {error!r}") from error
            self._taken += 1
            if self._taken > self._skip:
                rows.append(self._source.fields.row(where, value))
        return rows

    def cursor(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def fraction(self) -> float | None:
        return None

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class DatasetSource:
    """A Hugging Face dataset, by rows; a streamed one is iterated."""

    dataset: Any
    fields: Fields
    name: str = "dataset"

    def identity(self) -> dict[str, Any]:
        """The fingerprint that datasets gives it, and the fields."""
        known = getattr(self.dataset, "_fingerprint", None) or hashlib.sha256(repr(self.dataset).encode()).hexdigest()
        return {"kind": "dataset", "fingerprint": known, "fields": repr(self.fields), "total": self.total()}

    def total(self) -> int | None:
        """Known unless it is streamed."""
        return len(self.dataset) if hasattr(self.dataset, "__len__") else None

    def open(self, cursor: dict[str, Any] | None) -> _ItemsReader | _DatasetReader:
        """Read from a row on."""
        taken = int((cursor or {}).get("taken", 0))
        if self.total() is None:
            source = ItemsSource(self.dataset, self.fields, self.name)
            return _ItemsReader(iter(self.dataset.skip(taken)), taken, source)
        return _DatasetReader(self, taken)


class _DatasetReader:
    def __init__(self, source: DatasetSource, taken: int) -> None:
        self._source, self._taken = source, taken
        self._total = len(source.dataset)

    def read(self, most: int) -> list[Row]:
        first, last = self._taken, min(self._taken + most, self._total)
        if first >= last:
            return []
        columns: dict[str, list[Any]] = self._source.dataset[first:last]
        self._taken = last
        rows = []
        for place in range(last - first):
            record = {name: values[place] for name, values in columns.items()}
            rows.append(self._source.fields.row(f"{self._source.name} row {first + place}", record))
        return rows

    def cursor(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def fraction(self) -> float | None:
        return self._taken / self._total if self._total else None

    def close(self) -> None:
        """Nothing is held."""
