"""Leases: who holds one works alone.

`NoLease`, `FileLease` and `DictLease` save work, and nothing depends on them. `FencedLease` keeps a stale holder from
taking effect: each grant has a number, and what is written with a smaller one is refused by whoever checks it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["DictLease", "DictPort", "FencedLease", "FileLease", "Grant", "Lease", "LocalEntries", "NoLease"]

_LONGEST_WAIT_S = 3600.0


class Lease(Protocol):
    """Waits until no other fetch of the same snapshot is at work, or until that takes too long."""

    def hold(self, key: str) -> AbstractContextManager[None]:
        """Hold the lease of *key*."""


class NoLease:
    """No lease at all: fetches of one snapshot each do the work, and one publishes."""

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:  # noqa: ARG002 (nobody is asked)
        """Go on at once."""
        yield


class FileLease:
    """A lease among the processes of one machine; it ends with its process."""

    def __init__(self, folder: Path, *, wait_s: float = _LONGEST_WAIT_S) -> None:
        """Lock files are made in *folder*."""
        self._folder, self._wait_s = folder, wait_s

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold the lease of *key*."""
        lock = os.open(self._folder / f"lease-{key}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            until = time.monotonic() + self._wait_s
            while not _locked(lock) and time.monotonic() < until:
                threading.Event().wait(0.05)  # there is no event that tells of another process's lock with a time-out
            yield
        finally:
            os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class DictPort(Protocol):
    """What a lease needs of a ``modal.Dict``."""

    def put_new(self, key: str, value: tuple[str, float]) -> bool:
        """Store unless there is something; whether it was stored."""

    def put(self, key: str, value: tuple[str, float]) -> None:
        """Store whatever there is."""

    def get(self, key: str) -> tuple[str, float] | None:
        """What is stored."""

    def remove(self, key: str) -> None:
        """Take it away, if it is there."""


class DictLease:
    """A lease among containers: an entry that its holder renews, and that anyone takes over once it is stale."""

    def __init__(self, entries: DictPort, *, ttl_s: float = 60.0, wait_s: float = _LONGEST_WAIT_S) -> None:
        """An entry is stale *ttl_s* after its last renewal."""
        self._entries, self._ttl_s, self._wait_s = entries, ttl_s, wait_s

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Hold the lease of *key*."""
        owner, released = secrets.token_hex(8), threading.Event()
        until = time.monotonic() + self._wait_s
        while not self._entries.put_new(key, (owner, time.time() + self._ttl_s)):
            current = self._entries.get(key)
            if (current is not None and current[1] < time.time()) or time.monotonic() > until:
                self._entries.put(key, (owner, time.time() + self._ttl_s))
                break
            released.wait(min(1.0, self._ttl_s / 10))

        def renew() -> None:
            while not released.wait(self._ttl_s / 3):
                self._entries.put(key, (owner, time.time() + self._ttl_s))

        renewal = threading.Thread(target=renew, daemon=True, name="gpuserve-weights-lease")
        renewal.start()
        try:
            yield
        finally:
            released.set()
            renewal.join()
            current = self._entries.get(key)
            if current is not None and current[0] == owner:
                self._entries.remove(key)


class LocalEntries:
    """Entries of this process alone, where there is no Modal."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def put_new(self, key: str, value: tuple[str, float]) -> bool:
        """Store unless there is something; whether it was stored."""
        with self._lock:
            return self._values.setdefault(key, value) is value

    def put(self, key: str, value: tuple[str, float]) -> None:
        """Store whatever there is."""
        self._values[key] = value

    def get(self, key: str) -> tuple[str, float] | None:
        """What is stored."""
        return self._values.get(key)

    def remove(self, key: str) -> None:
        """Take it away, if it is there."""
        self._values.pop(key, None)


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that was given: to whom, and the how-manieth of its key."""

    key: str
    owner: str
    number: int


class FencedLease:
    """Leases in a ``modal.Dict`` of which each key has one holder, decided by one atomic step.

    Grant *n* of a key is the entry ``key#n``, which the Dict gives to whoever stores it first. A holder whose entry is
    stale is followed by grant *n + 1*, and finds that out when it renews.

    Args:
        entries: The Dict.
        ttl_s: Seconds after its last renewal that a grant is stale.
        clock: Seconds since 1970; the clocks of containers must not differ by as much as *ttl_s*.

    Examples:
        >>> lease = FencedLease(LocalEntries())
        >>> first = lease.acquire("nightly", "one container")
        >>> lease.acquire("nightly", "another") is None
        True
        >>> lease.release(first)
        >>> lease.acquire("nightly", "another").number
        2
    """

    def __init__(self, entries: DictPort, *, ttl_s: float = 60.0, clock: Callable[[], float] = time.time) -> None:
        self._entries, self.ttl_s, self._clock = entries, ttl_s, clock

    def acquire(self, key: str, owner: str) -> Grant | None:
        """Take the lease at once; ``None`` if another holds it.

        What the same *owner* holds it gets again, as the next grant: a container that is started again for the same
        call.
        """
        number, current = self._newest(key)
        if current is not None and current[0] != owner and current[1] > self._clock():
            return None
        grant = Grant(key, owner, number + 1)
        if not self._entries.put_new(_entry(grant), (owner, self._clock() + self.ttl_s)):
            return None
        self._entries.put(key, (str(grant.number), self._clock()))  # where the next one begins to look
        return grant

    def renew(self, grant: Grant) -> bool:
        """Hold it on; false if it was given to another meanwhile."""
        if not self.is_held(grant):
            return False
        self._entries.put(_entry(grant), (grant.owner, self._clock() + self.ttl_s))
        return True

    def is_held(self, grant: Grant) -> bool:
        """Whether no later grant was given."""
        return self._entries.get(f"{grant.key}#{grant.number + 1}") is None

    def release(self, grant: Grant) -> None:
        """Give it back; the next grant may be given at once."""
        if self.is_held(grant):
            self._entries.put(_entry(grant), (grant.owner, 0.0))

    def next_number(self, key: str, *, above: int) -> int:
        """A number that no other is given of *key*, and larger than *above* and than all that were given before."""
        hint = self._entries.get(key)
        number = max(above, int(hint[0]) if hint is not None else 0) + 1
        while not self._entries.put_new(f"{key}#{number}", ("", self._clock())):
            number += 1
        self._entries.put(key, (str(number), self._clock()))
        return number

    def _newest(self, key: str) -> tuple[int, tuple[str, float] | None]:
        hint = self._entries.get(key)
        number = int(hint[0]) if hint is not None else 0
        current = self._entries.get(f"{key}#{number}") if number else None
        while (later := self._entries.get(f"{key}#{number + 1}")) is not None:
            number, current = number + 1, later
        return number, current


def _entry(grant: Grant) -> str:
    return f"{grant.key}#{grant.number}"
