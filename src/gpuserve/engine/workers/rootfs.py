"""A container's own root: this machine's files, with the container's own files and volumes at their paths.

Every ancestor of a mount point is a fresh directory with its old entries bound one by one, because a
mount point made inside a bind mount would appear on the host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpuserve.engine.workers.namespaces import BIND, RDONLY, REC, REMOUNT, begin_root, mount, mount_proc, pivot_into
from gpuserve.exceptions import EngineError

__all__ = ["enter_root"]

# Larger files are bound, read-only, rather than copied into memory. Source: our choice.
_COPY_BYTES = 1 << 20

Tree = dict[str, Any]


def enter_root(
    new_root: Path,
    files: Sequence[Sequence[Any]],
    volumes: Sequence[dict[str, Any]],
    *,
    hidden: Mapping[str, Sequence[str]],
    own_proc: bool,
) -> None:
    """Make *files* and *volumes* visible at their paths, and nothing of that visible outside.

    Args:
        new_root: A path that does not exist, to build the root at.
        files: Path in the container, path on the host and mode of each file.
        volumes: ``path``, ``host`` and ``read_only`` of each volume.
        hidden: Folders that the container sees empty, but for what is listed with each: files, and folders that
            it may only read.
        own_proc: Show the processes of this pid namespace at ``/proc``.

    Raises:
        EngineError: If two of the paths exclude each other.
        OSError: If the kernel refuses a mount.
    """
    begin_root(new_root)
    tree: Tree = {"root": {}}
    inner = _plan_volumes(tree, volumes)
    for path, host, mode in files:
        _place(tree, path, ("file", (host, mode)))
    if own_proc:
        tree["proc"] = ("proc", None)
    _build(tree, Path("/"), new_root)
    for volume in inner:
        _mount_inside(new_root, volume)
    for folder, kept in hidden.items():
        _hide(new_root, Path(folder), kept)
    pivot_into(new_root)


def _plan_volumes(tree: Tree, volumes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Place the outermost volumes; return those that lie in another, the outer ones first."""
    inner: list[dict[str, Any]] = []
    for volume in sorted(volumes, key=lambda one: len(_parts(one["path"]))):
        parts = _parts(volume["path"])
        at: Any = tree
        for part in parts:
            at = at.get(part) if isinstance(at, dict) else at
        if isinstance(at, tuple):
            inner.append(volume)
        else:
            _place(tree, volume["path"], ("volume", volume))
    return inner


def _parts(path: str) -> tuple[str, ...]:
    # an ancestor that is a link on the host is followed there, not replaced
    return (Path(os.path.realpath(Path(path).parent)) / Path(path).name).parts[1:]


def _place(tree: Tree, path: str, leaf: tuple[str, Any]) -> None:
    parts = _parts(path)
    at = tree
    for part in parts[:-1]:
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise EngineError(
                f"the path {path} lies inside a volume or under a file of this container: put the file into the "
                "volume, or mount one of the two elsewhere"
            )
    if isinstance(at.get(parts[-1]), dict) and leaf[0] == "file":
        raise EngineError(f"the path {path} is a file and a directory of this container: move one of the two")
    at[parts[-1]] = leaf


def _build(tree: Tree, old: Path, new: Path) -> None:
    """Fill *new* with what is planned, and with all else that *old* has."""
    for name, planned in tree.items():
        target = new / name
        if isinstance(planned, dict):
            target.mkdir()
            _build(planned, old / name, target)
            continue
        kind, what = planned
        if kind == "file":
            _put_file(Path(what[0]), target, what[1])
        elif kind == "proc":
            target.mkdir()
            mount_proc(target)
        else:
            target.mkdir()
            _mount_volume(what, target)
    if old.is_symlink() or not os.access(old, os.R_OK | os.X_OK) or not old.is_dir():
        return
    with os.scandir(old) as entries:
        for entry in entries:
            if entry.name not in tree:
                with contextlib.suppress(FileNotFoundError):  # it went while we looked
                    _bind_entry(entry, new / entry.name)


def _bind_entry(entry: os.DirEntry[str], target: Path) -> None:
    if entry.is_symlink():
        target.symlink_to(Path(entry.path).readlink())
    elif entry.is_dir(follow_symlinks=False):
        target.mkdir()
        mount(entry.path, str(target), "", BIND | REC)
    else:
        target.touch()
        mount(entry.path, str(target), "", BIND)


def _put_file(source: Path, target: Path, mode: int) -> None:
    if source.stat().st_size <= _COPY_BYTES:
        shutil.copyfile(source, target)
        target.chmod(mode)
    else:
        target.touch()
        mount(str(source), str(target), "", BIND)
        mount("none", str(target), "", BIND | REMOUNT | RDONLY)


def _mount_volume(volume: dict[str, Any], target: Path) -> None:
    mount(volume["host"], str(target), "", BIND | REC)
    if volume["read_only"]:
        mount("none", str(target), "", BIND | REMOUNT | RDONLY)


def _hide(new_root: Path, folder: Path, kept: Sequence[str]) -> None:
    # mounted over what is there already: no new name appears on the host
    target = new_root / os.path.realpath(folder).lstrip("/")
    if not target.is_dir():
        return
    mount("tmpfs", str(target), "tmpfs", 0)
    for name in kept:
        path = Path(name)
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            place.mkdir()
            mount(name, str(place), "", BIND | REC)
            mount("none", str(place), "", BIND | REMOUNT | RDONLY)
        else:
            place.touch()
            mount(name, str(place), "", BIND)


def _mount_inside(new_root: Path, volume: dict[str, Any]) -> None:
    """Mount a volume at a path inside another volume, which gets an empty directory there."""
    target = new_root.joinpath(*_parts(volume["path"]))
    try:
        if os.path.realpath(target) != str(target):
            raise EngineError(f"a volume cannot be mounted at {volume['path']}: the volume around it has a link there")
        target.mkdir(parents=True, exist_ok=True)
        _mount_volume(volume, target)
    except OSError as error:
        raise EngineError(
            f"a volume cannot be mounted at {volume['path']}, inside another volume: {error.strerror}. "
            "Make that directory in the outer volume, or mount one of the two elsewhere."
        ) from error
