"""Putting a published snapshot in service under a name, and taking it out again; by hand, without a gate."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpuserve.exceptions import WeightsNotFoundError, WeightsSourceError
from gpuserve.runtime.weights.snapshot import open_snapshot
from gpuserve.runtime.weights.store import WeightsStore

__all__ = ["InService", "in_service", "promoted", "rolled_back"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_SHORTEST = 7


@dataclass(frozen=True)
class InService:
    """What is in service under a name.

    Attributes:
        name: The alias.
        snapshot: What is in service.
        before: What was, and what a rollback would bring back; empty if there is nothing.
        at: When that was decided, in UTC.
        changed: Whether this call did it.
    """

    name: str
    snapshot: str
    before: str
    at: str
    changed: bool = False


def promoted(store: WeightsStore, name: str, revision: str) -> InService:
    """Put a snapshot in service, once every byte of it is verified.

    Args:
        store: Where it is published.
        name: The alias.
        revision: The snapshot's name, or the first seven or more digits of its commit.

    Raises:
        WeightsNotFoundError: If there is no such snapshot, or several.
        WeightsError: If it is damaged.
    """
    _require_name(name)
    key = _key(store, revision)
    open_snapshot(store.folder(key))
    alias = store.alias(name)
    after = alias.promoted(key)
    if after is not alias:
        store.record_alias(after)
    return _told(store, name, changed=after is not alias)


def rolled_back(store: WeightsStore, name: str) -> InService:
    """Put what was in service before in service again, once it is verified.

    Raises:
        WeightsNotFoundError: If nothing was before.
        WeightsError: If it is damaged.
    """
    _require_name(name)
    after = store.alias(name).rolled_back()
    open_snapshot(store.folder(after.history[-1].snapshot))
    store.record_alias(after)
    return _told(store, name, changed=True)


def in_service(store: WeightsStore) -> list[InService]:
    """Every alias and what it stands for.

    Raises:
        WeightsCorruptError: If one is damaged.
    """
    return [_told(store, alias.name, changed=False) for alias in store.list_aliases() if alias.served is not None]


def _told(store: WeightsStore, name: str, *, changed: bool) -> InService:
    alias = store.alias(name)
    standing = alias.standing
    before = standing[-2].snapshot if len(standing) > 1 else ""
    return InService(name, standing[-1].snapshot, before, alias.history[-1].at, changed)


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise WeightsSourceError(f"{name[:100]!r} is no alias's name; write letters, digits, dots and dashes")


def _key(store: WeightsStore, revision: str) -> str:
    published = store.list()
    keys = [one.key for one in published]
    if revision in keys:
        return revision
    of_commit = [
        one.key
        for one in published
        if len(revision) >= _SHORTEST and one.manifest is not None and one.manifest.commit.startswith(revision)
    ]
    if len(of_commit) == 1:
        return of_commit[0]
    what = "is the beginning of several" if of_commit else "is not the name of one, nor the beginning of its commit"
    raise WeightsNotFoundError(
        f"{revision[:100]!r} {what}; there are: {', '.join((of_commit or keys)[:10]) or 'none'}. "
        f"List them: gpuserve weights list"
    )
