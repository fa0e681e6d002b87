"""Modal's storage, as the runtime uses it: the one file of the runtime that calls modal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import modal

__all__ = ["KeyEntries", "KeyPort", "LeaseEntries", "ModalVolume", "PlainFolder", "VolumePort"]


class VolumePort(Protocol):
    """What a fetch and a reader need of a volume."""

    def commit(self) -> None:
        """Make what was written visible to other containers."""

    def reload(self) -> None:
        """See what others committed."""


class ModalVolume:
    """A Modal Volume that is mounted in this container."""

    def __init__(self, name: str) -> None:
        """Look it up by *name*, which costs nothing until it is used."""
        self._volume = modal.Volume.from_name(name)

    def commit(self) -> None:
        """Make what was written visible to other containers."""
        self._volume.commit()

    def reload(self) -> None:
        """See what others committed."""
        self._volume.reload()


class PlainFolder:
    """A folder of this machine, which everybody sees as it is."""

    def commit(self) -> None:
        """Nothing is left to do: every file was synced when it was written."""

    def reload(self) -> None:
        """Nothing is hidden."""


class LeaseEntries:
    """Entries of leases in a ``modal.Dict``."""

    def __init__(self, name: str) -> None:
        """Use the dict of that *name*, made where there is none."""
        self._dict = modal.Dict.from_name(name, create_if_missing=True)

    def put_new(self, key: str, value: tuple[str, float]) -> bool:
        """Store unless there is something; whether it was stored."""
        return self._dict.put(key, value, skip_if_exists=True)

    def put(self, key: str, value: tuple[str, float]) -> None:
        """Store whatever there is."""
        self._dict.put(key, value)

    def get(self, key: str) -> tuple[str, float] | None:
        """What is stored."""
        found: tuple[str, float] | None = self._dict.get(key)
        return found

    def remove(self, key: str) -> None:
        """Take it away, if it is there."""
        self._dict.pop(key, None)


class KeyPort(Protocol):
    """Where keys are read again and again."""

    async def read(self) -> Mapping[str, str]:
        """The sha256 of every key, in hexadecimal digits, by its name."""


class KeyEntries:
    """Keys in a ``modal.Dict``."""

    def __init__(self, name: str) -> None:
        """Use the dict of that *name*, made where there is none."""
        self._dict = modal.Dict.from_name(name, create_if_missing=True)

    async def read(self) -> Mapping[str, str]:
        """All of its entries."""
        return {str(key): value async for key, value in self._dict.items.aio()}
