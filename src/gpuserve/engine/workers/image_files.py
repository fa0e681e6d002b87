"""The files that an image's layers bring, under the paths that ``COPY`` and ``ADD`` give them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["HostFile", "ImageFiles"]


@dataclass(frozen=True, slots=True)
class HostFile:
    """Where the bytes of an image's file lie on this machine."""

    host: Path
    mode: int = 0o644


@dataclass(slots=True)
class ImageFiles:
    """What has been copied into an image so far, by absolute path."""

    by_path: dict[str, HostFile] = field(default_factory=dict)

    def copy(
        self,
        sources: Sequence[str],
        destination: str,
        context: Mapping[str, HostFile],
        *,
        workdir: str,
        mode: int | None = None,
    ) -> list[str]:
        """Copy as ``COPY`` does; return the sources that match nothing in *context*.

        Args:
            sources: Files, folders and patterns of the context.
            destination: A file, or a folder; relative ones begin at *workdir*.
            context: The files that were sent along, by their path without a leading slash.
            workdir: The folder that the image is in.
            mode: The permission bits that they get; their own by default.
        """
        target = posixpath.normpath(posixpath.join(workdir, destination))
        into = len(sources) > 1 or destination.endswith(("/", "/.")) or destination == "." or self._is_folder(target)
        missing: list[str] = []
        for source in sources:
            pattern = _pattern(source)
            matched = False
            for name, file in context.items():
                match = pattern.fullmatch(name)
                if match is None:
                    continue
                matched = True
                if match["inside"] is not None:
                    place = posixpath.join(target, match["inside"])
                else:
                    place = posixpath.join(target, posixpath.basename(name)) if into else target
                self.by_path[place] = HostFile(file.host, file.mode if mode is None else mode)
            if not matched:
                missing.append(source)
        return missing

    def _is_folder(self, path: str) -> bool:
        return Path(path).is_dir() or any(name.startswith(f"{path.rstrip('/')}/") for name in self.by_path)

    def read(self, path: str) -> str | None:
        """The text of a file, or ``None`` where the image's layers brought none of that path."""
        found = self.by_path.get(posixpath.normpath(path))
        return None if found is None else found.host.read_text(encoding="utf-8", errors="replace")


def _pattern(source: str) -> re.Pattern[str]:
    """A pattern for a path of the context: the thing itself, or what lies ``inside`` it."""
    clean = posixpath.normpath(source.lstrip("/") or ".")
    if clean == ".":
        return re.compile(r"(?P<inside>.+)", re.DOTALL)
    parts = re.split(r"(\*\*|\*|\?|\[[^]]*\])", clean)
    known = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    text = "".join(known.get(one, one if one.startswith("[") else re.escape(one)) for one in parts)
    return re.compile(f"(?:{text})(?:/(?P<inside>.+))?", re.DOTALL)
