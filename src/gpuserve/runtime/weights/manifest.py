"""The manifest of a snapshot: what every file must be, told in a form that shows any change to itself."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gpuserve.exceptions import WeightsCorruptError
from gpuserve.specs.source import AnySource

__all__ = [
    "LARGEST_MANIFEST",
    "MANIFEST",
    "SCHEMA_VERSION",
    "ManifestFile",
    "SnapshotManifest",
    "content_digest",
    "is_contained",
    "strict_json",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION: Literal[1] = 1
LARGEST_MANIFEST = 16 << 20
_SHA256 = r"^[0-9a-f]{64}$"
# Source: NAME_MAX of Linux
_LONGEST_NAME = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")

Sha256 = Annotated[str, Field(pattern=_SHA256)]


class ManifestFile(BaseModel):
    """One file: its path, size and sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    size: Annotated[int, Field(ge=0, le=1 << 50)]
    sha256: Sha256
    unsafe: bool = False

    @field_validator("path")
    @classmethod
    def _contained(cls, value: str) -> str:
        if not is_contained(value):
            raise ValueError("the path leads out of the snapshot")
        return value


class SnapshotManifest(BaseModel):
    """What a snapshot holds, and where it came from.

    Attributes:
        source: The source as it was declared.
        commit: The commit that it was fetched at; the content's digest where the source has no commits.
        digest: One digest over every path, size and sha256.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    source: AnySource
    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
    files: Annotated[tuple[ManifestFile, ...], Field(min_length=1, strict=False)]
    digest: Sha256
    created_at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        paths = [one.path for one in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("the files are not sorted, or one is named twice")
        folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        if folders & set(paths):
            raise ValueError("a path is a file and a folder")
        if not hmac.compare_digest(content_digest(self.files), self.digest):
            raise ValueError("the digest is not the one of its files")
        return self

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(one.size for one in self.files)

    @classmethod
    def of(cls, source: AnySource, commit: str, files: Iterable[ManifestFile]) -> Self:
        """The manifest of *files*, now."""
        ordered = tuple(sorted(files, key=lambda one: one.path))
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return cls(source=source, commit=commit, files=ordered, digest=content_digest(ordered), created_at=now)

    def to_bytes(self) -> bytes:
        """The one form in which this manifest is written."""
        body = self.model_dump(mode="json")
        return _canonical({**body, "checksum": hashlib.sha256(_canonical(body)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> Self:
        """Read what `to_bytes` wrote; a manifest with as much as one other byte is refused.

        Raises:
            WeightsCorruptError: With what is wrong.
        """
        body = strict_json(data, where)
        if not isinstance(body, dict):
            raise WeightsCorruptError(where, "it is not a JSON object")
        version = body.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise WeightsCorruptError(
                where, f"it is of version {version}, this gpuserve reads {SCHEMA_VERSION}; use a newer gpuserve"
            )
        body.pop("checksum", None)
        try:
            found = cls.model_validate_json(json.dumps(body))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise WeightsCorruptError(where, f"{place}: {first['msg']}") from None
        except ValueError as error:
            raise WeightsCorruptError(where, str(error)) from None
        if not hmac.compare_digest(found.to_bytes(), data):
            raise WeightsCorruptError(where, "its checksum is not the one of its text")
        return found


def is_contained(path: str) -> bool:
    """Whether a path stays in its folder, and can be a file's at all.

    Examples:
        >>> [is_contained(path) for path in ("a/b.json", "../b.json", "/etc/passwd", "a//b", "")]
        [True, False, False, False, False]
    """
    parts = PurePosixPath(path).parts
    if PurePosixPath(path).is_absolute() or ".." in parts or str(PurePosixPath(path)) != path or path == ".":
        return False
    return not _CONTROL.search(path) and all(len(part.encode(errors="replace")) <= _LONGEST_NAME for part in parts)


def content_digest(files: Iterable[ManifestFile]) -> str:
    """One sha256 over every path, size and sha256, whatever the order they are given in."""
    lines = sorted(f"{one.sha256} {one.size} {one.path}\n" for one in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def strict_json(data: bytes, where: str) -> Any:
    """JSON without duplicate keys, NaN or numbers past reason.

    Raises:
        WeightsCorruptError: If it is anything else.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands in it twice")
        return found

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is no JSON number")

    try:
        return json.loads(data.decode(), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WeightsCorruptError(where, f"it is not JSON: {error}") from None


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True).encode() + b"\n"
