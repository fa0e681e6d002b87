"""Leases that save work: who fetches first, fetches alone. Nothing depends on them; the manifest does that."""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

__all__ = ["DictLease", "DictPort", "FileLease", "Lease", "NoLease"]

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
