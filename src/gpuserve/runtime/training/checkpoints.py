"""Checkpoints that are whole or not there: written aside, synced, named with a manifest, moved into place, committed.

``checkpoints/step-STEP-TOKEN`` holds ``files`` and ``manifest.json``; ``incomplete/TOKEN`` what is being written. Each
has a name of its own, so that two containers which both believe to be the one that trains never mix their files, also
where the last write of a file wins, as on Modal's volumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpuserve.exceptions import DiskFullError, WeightsCorruptError, WeightsError
from gpuserve.runtime.ports import VolumePort
from gpuserve.runtime.weights.manifest import LARGEST_MANIFEST, ManifestFile, content_digest, strict_json
from gpuserve.runtime.weights.steps import (
    files_below,
    naming_a_full_disk,
    read_plain,
    sha256_of,
    sync_file,
    sync_folder,
    write_new,
)

__all__ = ["Checkpoint", "CheckpointManifest", "CheckpointStore"]

_MANIFEST, _FILES = "manifest.json", "files"
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was verified.

    Attributes:
        step: The steps of the optimiser that are in it.
        path: The folder with its files.
    """

    step: int
    path: Path


class CheckpointManifest(BaseModel):
    """What a checkpoint holds: every file, its size and its sha256, and the step."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    step: Annotated[int, Field(ge=0)]
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1, strict=False)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    def to_bytes(self) -> bytes:
        """The one form in which this manifest is written."""
        body = self.model_dump(mode="json")
        return _canonical({**body, "checksum": hashlib.sha256(_canonical(body)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote; a manifest with as much as one other byte is refused.

        Raises:
            WeightsCorruptError: With what is wrong.
        """
        body = strict_json(data, _MANIFEST)
        if not isinstance(body, dict):
            raise WeightsCorruptError(_MANIFEST, "it is not a JSON object")
        body.pop("checksum", None)
        try:
            found = cls.model_validate_json(json.dumps(body))
        except (ValidationError, ValueError) as error:
            raise WeightsCorruptError(_MANIFEST, str(error).splitlines()[0]) from None
        whole = hmac.compare_digest(found.to_bytes(), data)
        if not whole or not hmac.compare_digest(content_digest(found.files), found.digest):
            raise WeightsCorruptError(_MANIFEST, "its checksum is not the one of its text")
        return found


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        root: The run's folder, in the volume.
        volume: Committed after each checkpoint.
        keep: Checkpoints that stay.
        on_fault: Told of a checkpoint that is not to be used, and why.
    """

    def __init__(
        self,
        root: Path,
        volume: VolumePort,
        *,
        keep: int = 2,
        on_fault: Callable[[str, str], None] = lambda _name, _reason: None,
    ) -> None:
        self.folder, self._incomplete = root / "checkpoints", root / "incomplete"
        self._volume, self._keep, self._on_fault = volume, keep, on_fault

    def prepare(self) -> None:
        """Make the folders, and drop what a dead attempt was writing.

        Raises:
            DiskFullError: If there is no room.
        """
        with naming_a_full_disk(self.folder.parent, 0):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._incomplete.mkdir(exist_ok=True)
            sync_folder(self.folder.parent)
        for left in self._incomplete.iterdir():
            shutil.rmtree(left, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or ``None``; what is not whole is told of and passed by."""
        for step, path in sorted(self._listed(), reverse=True):
            try:
                return _verified(path, step)
            except (WeightsError, OSError) as error:
                self._on_fault(path.name, str(error))
        return None

    def publish(self, step: int, write: Callable[[Path], None]) -> Checkpoint:
        """Have *write* fill a folder, and make a checkpoint of it, whole or not at all; then drop older ones.

        Raises:
            DiskFullError: If there is no room; the checkpoints before are whole.
        """
        token = secrets.token_hex(8)
        aside, final = self._incomplete / token, self.folder / f"step-{step:09}-{token}"
        try:
            with naming_a_full_disk(self.folder, 0):
                files = aside / _FILES
                files.mkdir(parents=True)
                try:
                    write(files)
                except (RuntimeError, OSError) as error:
                    # torch and safetensors write in C++, and have words of their own for a full disk
                    _retell(error, self.folder)
                    raise
                manifest = _synced(files, step)
                write_new(aside / _MANIFEST, manifest.to_bytes())
                sync_folder(aside)
                aside.rename(final)
                sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        self._volume.commit()
        self._prune()
        return Checkpoint(step, final / _FILES)

    def _listed(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(name[1]), path) for name, path in found if name is not None]

    def _prune(self) -> None:
        steps = sorted({step for step, _ in self._listed()}, reverse=True)[: self._keep]
        for step, path in self._listed():
            if step not in steps:
                grave = self._incomplete / f"gone-{path.name}"
                with contextlib.suppress(OSError):  # it stays, and goes the next time
                    path.rename(grave)
                    shutil.rmtree(grave)


def _synced(files: Path, step: int) -> CheckpointManifest:
    listed: list[ManifestFile] = []
    for name, size in sorted(files_below(files).items()):
        sync_file(files / name)
        listed.append(ManifestFile(path=name, size=size, sha256=sha256_of(files / name, name)))
    for folder, _, _ in os.walk(files):
        sync_folder(Path(folder))
    return CheckpointManifest(step=step, files=tuple(listed), digest=content_digest(listed))


def _verified(path: Path, step: int) -> Checkpoint:
    manifest = CheckpointManifest.from_bytes(read_plain(path / _MANIFEST, _MANIFEST, LARGEST_MANIFEST))
    if manifest.step != step:
        raise WeightsCorruptError(path.name, f"its manifest is of step {manifest.step}")
    files = path / _FILES
    found, named = files_below(files), {one.path: one for one in manifest.files}
    if found.keys() != named.keys():
        other = ", ".join(sorted(found.keys() ^ named.keys())[:5])
        raise WeightsCorruptError(path.name, f"the files are not those of its manifest: {other}")
    for name, one in named.items():
        if found[name] != one.size or not hmac.compare_digest(sha256_of(files / name, name), one.sha256):
            raise WeightsCorruptError(name, "its content is not the one in the manifest")
    return Checkpoint(step, files)


def _retell(error: Exception, folder: Path) -> None:
    """Raise a full disk as such, where a writer in another language told it in words of its own."""
    text = str(error)
    if "No space left" in text or "os error 28" in text or "Disk quota exceeded" in text:
        raise DiskFullError(str(folder), 0, shutil.disk_usage(folder).free) from error
    # torch's zip writer tells of a short write without its reason
    free = shutil.disk_usage(folder).free
    if "file write failed" in text and free < 1 << 20:
        raise DiskFullError(str(folder), 0, free) from error


def _canonical(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"
