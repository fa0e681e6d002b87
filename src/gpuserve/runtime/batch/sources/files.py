"""What sources of several files share: their identity, and which of them is being read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuserve.exceptions import BadInputError

__all__ = ["expanded", "files_identity"]

_SAMPLE = 1 << 16


def expanded(paths: Sequence[str]) -> tuple[Path, ...]:
    """The files that *paths* name, patterns expanded in the order of their names.

    Raises:
        BadInputError: If one names nothing.
    """
    found: list[Path] = []
    for text in paths:
        if any(mark in text for mark in "*?["):
            path = Path(text)
            root = Path(path.anchor) if path.is_absolute() else Path()
            matched = sorted(one for one in root.glob(str(path.relative_to(root))) if one.is_file())
        else:
            matched = [Path(text)] if Path(text).is_file() else []
        if not matched:
            raise BadInputError(
                text, "", "there is no such file; give the path of a file, or a pattern such as docs/*.jsonl"
            )
        found += matched
    return tuple(found)


def files_identity(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Each file's name, size and a digest of its first and last 64 KiB: enough to know it, without reading it all."""
    told = []
    for path in files:
        size = path.stat().st_size
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            if size > _SAMPLE:
                file.seek(max(_SAMPLE, size - _SAMPLE))
                digest.update(file.read(_SAMPLE))
        told.append({"file": path.name, "bytes": size, "digest": digest.hexdigest()})
    return told
