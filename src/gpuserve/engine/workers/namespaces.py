"""A container's own view of the file system: its sources under /root, its volumes at their paths.

The forked child moves into a mount namespace of its own (and a user namespace, where it is not
root), builds a new root out of bind mounts of the old one, and pivots into it. Every ancestor of a
mount point is a fresh directory with its old entries bound one by one, because a mount point made
inside a bind mount would appear on the host.

Where the kernel allows no namespaces, sources go to a folder of the container's own and volumes
become symbolic links at their paths, if nothing is there yet.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpuserve.exceptions import EngineError

__all__ = ["enter_namespace", "isolation_here"]

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_RDONLY, _REMOUNT, _BIND, _REC, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# Larger files are bound rather than copied into memory. Source: our choice.
_COPY_BYTES = 1 << 20

Tree = dict[str, Any]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    result = _libc().mount(source.encode(), target.encode(), kind.encode(), flags, None)
    _check(result, f"mount {source} at {target}")


def _unshare() -> None:
    user, group = os.getuid(), os.getgid()
    if user == 0:
        _check(_libc().unshare(_NEWNS), "unshare mounts")
    else:
        _check(_libc().unshare(_NEWUSER | _NEWNS), "unshare user and mounts")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount("none", "/", "", _REC | _PRIVATE)


def isolation_here() -> str:
    """How containers are kept apart on this machine: by trying it in a child."""
    if platform.machine() not in _PIVOT_ROOT:
        return "symlinks"
    pid = os.fork()
    if pid == 0:
        try:
            _unshare()
        except OSError:
            os._exit(1)
        os._exit(0)
    failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    if failed:
        return "symlinks"
    return "mount namespaces" if os.getuid() == 0 else "user and mount namespaces"


def enter_namespace(folder: Path, files: Sequence[Sequence[str]], volumes: Sequence[dict[str, Any]]) -> str:
    """Make *files* and *volumes* visible at their paths; return the folder of the app's sources.

    Raises:
        EngineError: If a path can be offered in no way that leaves the host as it is.
    """
    if isolation_here() == "symlinks":
        return _without_namespaces(folder, files, volumes)
    _unshare()
    new_root = folder / "rootfs"
    new_root.mkdir()
    _mount("tmpfs", str(new_root), "tmpfs", 0)
    tree: Tree = {"root": {}}
    for path, host in files:
        _place(tree, path, ("file", host))
    for volume in sorted(volumes, key=lambda one: str(one["path"]).count("/")):
        _place(tree, volume["path"], ("volume", volume))
    _build(tree, Path("/"), new_root)
    os.chdir(new_root)
    pivot = _PIVOT_ROOT[platform.machine()]
    _check(_libc().syscall(pivot, b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", _DETACH), "detach the old root")
    os.chdir("/")
    return "/root"


def _place(tree: Tree, path: str, leaf: tuple[str, Any]) -> None:
    # an ancestor that is a link on the host is followed there, not replaced
    real = Path(os.path.realpath(Path(path).parent)) / Path(path).name
    parts = real.parts[1:]
    at = tree
    for part in parts[:-1]:
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            raise EngineError(f"the path {path} lies inside another volume or file of this container")
        at = inner
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
            _put_file(Path(what), target)
        else:
            target.mkdir()
            _mount(what["host"], str(target), "", _BIND | _REC)
            if what["read_only"]:
                _mount("none", str(target), "", _BIND | _REMOUNT | _RDONLY)
    if not old.is_dir() or old.is_symlink():
        return
    with os.scandir(old) as entries:
        for entry in entries:
            if entry.name not in tree:
                _bind_entry(entry, new / entry.name)


def _bind_entry(entry: os.DirEntry[str], target: Path) -> None:
    if entry.is_symlink():
        target.symlink_to(Path(entry.path).readlink())
    elif entry.is_dir(follow_symlinks=False):
        target.mkdir()
        _mount(entry.path, str(target), "", _BIND | _REC)
    else:
        target.touch()
        _mount(entry.path, str(target), "", _BIND)


def _put_file(source: Path, target: Path) -> None:
    if source.stat().st_size <= _COPY_BYTES:
        shutil.copyfile(source, target)
    else:
        target.touch()
        _mount(str(source), str(target), "", _BIND)
        _mount("none", str(target), "", _BIND | _REMOUNT | _RDONLY)


def _without_namespaces(folder: Path, files: Sequence[Sequence[str]], volumes: Sequence[dict[str, Any]]) -> str:
    root = folder / "root"
    root.mkdir()
    for path, host in files:
        inside = path.removeprefix("/root/")
        if inside == path:
            _link(Path(path), Path(host))
        else:
            target = root / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(host, target)
    for volume in volumes:
        _link(Path(volume["path"]), Path(volume["host"]))
    return str(root)


def _link(path: Path, host: Path) -> None:
    if path.is_symlink() and path.readlink() == host:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(host)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be offered to the container: this kernel allows no mount namespaces, and no link can be "
            f"made there ({error.strerror}). Mount it at a path that is free and writable, or run as root."
        ) from error
