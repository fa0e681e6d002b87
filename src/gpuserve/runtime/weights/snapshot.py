"""A published snapshot, trusted only after every byte of it was checked."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import ChecksumMismatchError, WeightsCorruptError, WeightsNotFoundError
from gpuserve.runtime.weights.headers import check_safetensors
from gpuserve.runtime.weights.manifest import LARGEST_MANIFEST, MANIFEST, ManifestFile, SnapshotManifest
from gpuserve.runtime.weights.steps import files_below, read_plain, sha256_of

__all__ = ["FILES", "Snapshot", "open_snapshot"]

FILES = "files"
_MOST_THREADS = 8


@dataclass(frozen=True)
class Snapshot:
    """Weights that were verified.

    Attributes:
        path: The folder to load from; it holds the source's files and nothing else.
        manifest: What they are, and where they came from.
    """

    path: Path
    manifest: SnapshotManifest


def open_snapshot(folder: Path, *, reload: Callable[[], None] | None = None) -> Snapshot:
    """Verify the snapshot in *folder* against its manifest: every name, size, header and sha256.

    Args:
        folder: Where it was published.
        reload: Called once where there is no manifest, to see what was committed since the mount.

    Raises:
        WeightsNotFoundError: If there is no manifest.
        WeightsCorruptError: If anything is missing, too much, a link, or malformed.
        ChecksumMismatchError: If a file's content is not the one in the manifest.
    """
    manifest_path = folder / MANIFEST
    if reload is not None and not manifest_path.is_file():
        reload()
    if folder.is_symlink():
        raise WeightsCorruptError(folder.name, "the snapshot is a symbolic link")
    try:
        text = read_plain(manifest_path, MANIFEST, LARGEST_MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsNotFoundError(
            f"no weights are published at {folder}; fetch them first: gpuserve weights fetch, or the app's "
            f"function fetch_weights"
        ) from None
    manifest = SnapshotManifest.from_bytes(text, where=MANIFEST)
    if sorted(one.name for one in folder.iterdir()) != [FILES, MANIFEST]:
        raise WeightsCorruptError(str(folder), f"it must hold {FILES} and {MANIFEST} and nothing else")
    files = folder / FILES
    if files.is_symlink() or not files.is_dir():
        raise WeightsCorruptError(FILES, "it is not a folder")
    _check_names(files_below(files), manifest)
    largest_first = sorted(manifest.files, key=lambda one: -one.size)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1, len(largest_first))) as threads:
        # every file is looked at; of several faults the first in this order is told
        for done in [threads.submit(_check, files, one) for one in largest_first]:
            done.result()
    return Snapshot(files, manifest)


def _check_names(found: dict[str, int], manifest: SnapshotManifest) -> None:
    named = {one.path: one.size for one in manifest.files}
    for path in sorted(named.keys() - found.keys()):
        raise WeightsCorruptError(path, "it is missing")
    for path in sorted(found.keys() - named.keys()):
        raise WeightsCorruptError(path, "the manifest does not name it")
    for path, size in named.items():
        if found[path] != size:
            raise WeightsCorruptError(path, f"expected {size:,} bytes, got {found[path]:,}")


def _check(folder: Path, file: ManifestFile) -> None:
    path = folder / file.path
    got = sha256_of(path, file.path)
    if not hmac.compare_digest(got, file.sha256):
        raise ChecksumMismatchError(file.path, file.sha256, got)
    if path.suffix == ".safetensors":
        check_safetensors(path, file.path)
