"""A folder as a source: of this machine, of the image, or of another volume's mount."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from gpuserve.exceptions import WeightsSourceError
from gpuserve.runtime.weights.manifest import ManifestFile, content_digest
from gpuserve.runtime.weights.selection import selected
from gpuserve.runtime.weights.steps import sha256_of
from gpuserve.runtime.weights.workspace import Entry, Part
from gpuserve.specs.source import FolderSource, VolumeSource

__all__ = ["FolderOrigin"]

_BLOCK = 1 << 20


class FolderOrigin:
    """The files of a folder; its commit is the digest of those that are taken."""

    def __init__(self, source: FolderSource | VolumeSource) -> None:
        """Nothing is read yet."""
        self.source = source
        self._root = Path(source.path) if isinstance(source, FolderSource) else Path(source.mount_path) / source.path

    def listing(self) -> tuple[str, list[Entry]]:
        """The content's digest, and the files with theirs.

        Raises:
            WeightsSourceError: If the folder is not there, holds a link, or holds other content than was pinned.
        """
        if not self._root.is_dir():
            raise WeightsSourceError(f"{self._root} is not a folder here; correct the path of {self.source!r}")
        sizes: dict[str, int] = {}
        for folder, folders, names in os.walk(self._root):
            for name in (*names, *(one for one in folders if (Path(folder) / one).is_symlink())):
                path = Path(folder) / name
                sizes[path.relative_to(self._root).as_posix()] = path.lstat().st_size
        entries: list[Entry] = []
        for name in selected(sizes, self.source):
            real = (self._root / name).resolve()
            if not real.is_relative_to(self._root.resolve()) or not real.is_file():
                raise WeightsSourceError(f"{name} is no plain file of {self._root}; put the file itself there")
            entries.append(Entry(name, real.stat().st_size, sha256=sha256_of(real, name)))
        files = [ManifestFile(path=one.path, size=one.size, sha256=one.sha256 or "") for one in entries]
        digest, pinned = content_digest(files), self.source.digest
        if pinned is not None and not hmac.compare_digest(digest, pinned):
            raise WeightsSourceError(
                f"{self.source} holds {digest}, not the pinned {pinned}; pin it anew if you mean what it holds"
            )
        return digest, entries

    def download(self, _commit: str, part: Part) -> None:
        """Copy what *part* lacks."""
        with (self._root / part.entry.path).resolve().open("rb") as file:
            file.seek(part.size)
            while block := file.read(min(_BLOCK, part.entry.size - part.size)):
                part.write(block)
