"""Where state is kept: a ``modal.Dict`` by name, or this process's memory."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from gpuserve.exceptions import DeclarationError

__all__ = ["Entries", "Key", "MemoryEntries", "digest_of", "entries_of", "name_faults"]

Key = str | bytes | int
"""What can name an item: its bytes are the same in every process, which a pickle's need not be."""

# Modal takes letters, digits, dashes, dots and underscores, 64 at most (modal 1.6.4, `check_object_name`);
# our own prefix takes up to 17 of them.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,47}")


class Entries(Protocol):
    """Keys and values that several processes share."""

    def put_new(self, key: str, value: Any) -> bool:
        """Store unless there is something; whether it was stored."""

    def put(self, key: str, value: Any) -> None:
        """Store whatever there is."""

    def get(self, key: str) -> Any:
        """What is stored, or ``None``."""

    def remove(self, key: str) -> None:
        """Take it away, if it is there."""

    def items(self) -> Iterator[tuple[str, Any]]:
        """Everything, in no order."""

    def clear(self) -> None:
        """Take everything away."""


class MemoryEntries:
    """Entries in this process alone, for tests and for code that runs without Modal.

    Examples:
        >>> entries = MemoryEntries()
        >>> entries.put_new("a", 1), entries.put_new("a", 2), entries.get("a")
        (True, False, 1)
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._lock = threading.Lock()

    def put_new(self, key: str, value: Any) -> bool:
        """Store unless there is something; whether it was stored."""
        with self._lock:
            if key in self._values:
                return False
            self._values[key] = value
            return True

    def put(self, key: str, value: Any) -> None:
        """Store whatever there is."""
        with self._lock:
            self._values[key] = value

    def get(self, key: str) -> Any:
        """What is stored, or ``None``."""
        return self._values.get(key)

    def remove(self, key: str) -> None:
        """Take it away, if it is there."""
        with self._lock:
            self._values.pop(key, None)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Everything, as it was when the first was asked for."""
        with self._lock:
            values = list(self._values.items())
        yield from values

    def clear(self) -> None:
        """Take everything away."""
        with self._lock:
            self._values.clear()


def name_faults(name: Any) -> tuple[str, ...]:
    """What is wrong with the *name* of a piece of state."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return ()
    return (f"name got {name!r}: letters, digits, dashes, dots and underscores, 1 to 47 of them, as in 'nightly-run'",)


def entries_of(kind: str, name: str, entries: Entries | None, faults: tuple[str, ...] = ()) -> Entries:
    """*entries* where they are given, else the ``modal.Dict`` of that *kind* and *name*.

    Raises:
        DeclarationError: With *faults* and those of the name.
    """
    found = (*name_faults(name), *faults)
    if found:
        raise DeclarationError(f"this {kind}", found)
    if entries is not None:
        return entries
    from gpuserve.runtime.ports import DictEntries  # modal is not loaded for what stays in memory

    kept: Entries = DictEntries[Any](f"gpuserve-{kind}-{name}")
    return kept


def digest_of(item: Key) -> str:
    """A key of fixed length; 1, "1" and b"1" have three.

    Raises:
        TypeError: If *item* is none of the three: its bytes might differ from process to process.

    Examples:
        >>> len({digest_of(1), digest_of("1"), digest_of(b"1")})
        3
    """
    if isinstance(item, bool) or not isinstance(item, str | bytes | int):
        raise TypeError(
            f"an item is a str, bytes or int, got {type(item).__name__}; give its id, or json.dumps(…, sort_keys=True)"
        )
    if isinstance(item, bytes):
        return hashlib.sha256(b"b" + item).hexdigest()
    text = f"i{item}" if isinstance(item, int) else f"s{item}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
