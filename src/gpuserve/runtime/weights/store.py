"""Where snapshots lie in a volume or a folder: their names, what names were resolved to, and what is old.

``snapshots/KEY`` holds what was published, ``refs/ALIAS.json`` what a branch or a folder was resolved
to, ``aliases/NAME.json`` what is in service under a name, ``incomplete/KEY--RANDOM`` what one fetch is at work on.
"""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import WeightsCorruptError, WeightsNotFoundError, WeightsSourceError
from gpuserve.runtime.weights.aliases import ServedAlias
from gpuserve.runtime.weights.manifest import LARGEST_MANIFEST, MANIFEST, SnapshotManifest, strict_json
from gpuserve.runtime.weights.snapshot import Snapshot
from gpuserve.runtime.weights.steps import read_plain, sync_folder, write_new
from gpuserve.specs.source import AdapterSource, AliasSource, FolderSource, HubSource, VolumeSource

__all__ = ["Fetchable", "Published", "Source", "WeightsStore", "fetchable"]

Fetchable = HubSource | FolderSource | VolumeSource | AdapterSource
Source = Fetchable | AliasSource
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,400}")


def fetchable(source: Source) -> Fetchable:
    """The source, if it is one that can be fetched.

    Raises:
        WeightsSourceError: If it is an alias, which stands for what was promoted.
    """
    if isinstance(source, AliasSource):
        raise WeightsSourceError(
            f"{source} stands for what was promoted, and is not fetched; fetch the source itself and promote it: "
            f"gpuserve weights promote {source.name} SNAPSHOT"
        )
    return source


@dataclass(frozen=True)
class Published:
    """One published snapshot, listed and not verified; ``fault`` says why it cannot be read."""

    key: str
    manifest: SnapshotManifest | None
    fault: str = ""


class WeightsStore:
    """The snapshots under one folder, which may be a volume's mount."""

    def __init__(self, root: Path) -> None:
        """Nothing is written until something is fetched."""
        self.root = root
        self.snapshots, self.refs, self.incomplete = root / "snapshots", root / "refs", root / "incomplete"
        self.aliases = root / "aliases"

    def prepare(self) -> None:
        """Make the folders."""
        for folder in (self.snapshots, self.refs, self.incomplete):
            folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.root)

    def pinned_key(self, source: Source) -> str | None:
        """The snapshot's name where the declaration alone tells it."""
        origin = source.origin if isinstance(source, AdapterSource) else source
        if isinstance(origin, AliasSource):
            return None
        if isinstance(origin, HubSource):
            return self.key(source, origin.revision) if origin.is_pinned else None
        return self.key(source, origin.digest) if origin.digest is not None else None

    def key(self, source: Source, commit: str) -> str:
        """The name of the snapshot of a source at a commit.

        Raises:
            WeightsSourceError: If the source is an alias, which has no snapshot of its own.
        """
        source = fetchable(source)
        origin = source.origin if isinstance(source, AdapterSource) else source
        return f"{source.label}--{commit}--{origin.selection_digest}"

    def commit_in(self, source: Source, key: str) -> str:
        """The commit that a snapshot's name tells."""
        return key.removeprefix(f"{source.label}--").partition("--")[0]

    def folder(self, key: str) -> Path:
        """Where a snapshot lies, or will."""
        if not _KEY.fullmatch(key):
            raise WeightsCorruptError(key[:100], "it is not the name of a snapshot")
        return self.snapshots / key

    def resolved(self, source: Source) -> str | None:
        """The snapshot that a source was resolved to when it was fetched; ``None`` if it never was.

        Raises:
            WeightsCorruptError: If what was recorded is not that of this source.
        """
        if isinstance(source, AliasSource):
            served = self.alias(source.name).served
            return served.snapshot if served is not None else None
        pinned = self.pinned_key(source)
        if pinned is not None:
            return pinned
        path = self.refs / f"{source.alias}.json"
        try:
            found = strict_json(read_plain(path, path.name, LARGEST_MANIFEST), path.name)
        except FileNotFoundError:
            return None
        key = found.get("snapshot") if isinstance(found, dict) else None
        if not isinstance(key, str) or not key.startswith(f"{source.label}--"):
            raise WeightsCorruptError(path.name, "it does not name a snapshot of this source")
        self.folder(key)
        return key

    def record(self, source: Source, key: str) -> None:
        """Say which snapshot a source is, in one step."""
        temporary = self.incomplete / f"ref-{secrets.token_hex(8)}"
        try:
            write_new(temporary, f'{{"snapshot": "{key}"}}\n'.encode())
            temporary.replace(self.refs / f"{source.alias}.json")
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self.refs)

    def alias(self, name: str) -> ServedAlias:
        """What is, and was, in service under a name.

        Raises:
            WeightsCorruptError: If what was recorded is damaged.
        """
        path = self.aliases / f"{name}.json"
        try:
            return ServedAlias.from_bytes(read_plain(path, path.name, LARGEST_MANIFEST), name=name)
        except FileNotFoundError:
            return ServedAlias(name=name)

    def record_alias(self, alias: ServedAlias) -> None:
        """Write it in one step: a reader finds the one before or this one."""
        for folder in (self.aliases, self.incomplete):
            folder.mkdir(parents=True, exist_ok=True)
        temporary = self.incomplete / f"ref-{secrets.token_hex(8)}"
        try:
            write_new(temporary, alias.to_bytes())
            temporary.replace(self.aliases / f"{alias.name}.json")
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self.aliases)

    def list_aliases(self) -> list[ServedAlias]:
        """Every alias, by name.

        Raises:
            WeightsCorruptError: If one is damaged.
        """
        names = sorted(path.stem for path in self.aliases.glob("*.json")) if self.aliases.is_dir() else []
        return [self.alias(name) for name in names]

    def checked(self, snapshot: Snapshot, source: Source, key: str) -> Snapshot:
        """The snapshot, if it is the one of this source at the commit in its name.

        Raises:
            WeightsCorruptError: If a snapshot of something else lies under its name.
        """
        manifest = snapshot.manifest
        of_this = isinstance(source, AliasSource) or key.startswith(f"{source.label}--")
        if self.key(manifest.source, manifest.commit) != key or not of_this:
            raise WeightsCorruptError(key, f"its manifest is of {manifest.source} at {manifest.commit}")
        return snapshot

    def list(self) -> list[Published]:
        """What is published, by name."""
        if not self.snapshots.is_dir():
            return []
        found = []
        for name in sorted(one.name for one in self.snapshots.iterdir()):
            try:
                text = read_plain(self.snapshots / name / MANIFEST, MANIFEST, LARGEST_MANIFEST)
                found.append(Published(name, SnapshotManifest.from_bytes(text, where=MANIFEST)))
            except (OSError, WeightsCorruptError) as error:
                found.append(Published(name, None, str(error)))
        return found

    def remove(self, key: str) -> None:
        """Take a snapshot away: out of its name in one step, then file by file.

        Raises:
            WeightsNotFoundError: If there is none of that name.
        """
        folder = self.folder(key)
        grave = self.incomplete / f"removed-{secrets.token_hex(8)}"
        self.incomplete.mkdir(exist_ok=True)
        try:
            folder.rename(grave)
        except FileNotFoundError:
            raise WeightsNotFoundError(f"no snapshot is called {key}; list them: gpuserve weights list") from None
        sync_folder(self.snapshots)
        shutil.rmtree(grave)
        for path in self.refs.glob("*.json"):
            if key in path.read_text(errors="replace"):
                path.unlink()
