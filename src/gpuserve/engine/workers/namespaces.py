"""How a container is kept apart from this machine: which namespaces, and how it comes into them.

A container's first process is cloned into a mount namespace of its own (and a user namespace, where
it is not root), and where the kernel allows a fresh ``/proc``, into a pid namespace: then the kernel
itself ends whatever the container started, and no container sees another's processes.

Where the kernel allows no namespaces, sources go to a folder of the container's own, and all else
becomes links at its paths (`links.py`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import EngineError

__all__ = [
    "BIND",
    "RDONLY",
    "REC",
    "REMOUNT",
    "Isolation",
    "begin_root",
    "isolation_here",
    "mount",
    "mount_proc",
    "pivot_into",
]

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000
RDONLY, REMOUNT, BIND, REC, _PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_NOSUID, _NODEV, _NOEXEC = 0x2, 0x4, 0x8
# What a remount in a user namespace may not take away: flag of statvfs(3), flag of mount(2).
# Source: mount_namespaces(7); bits/statvfs.h and linux/mount.h.
_LOCKED = ((0x2, _NOSUID), (0x4, _NODEV), (0x8, _NOEXEC), (0x400, 0x400), (0x800, 0x800), (0x1000, 0x200000))
_DETACH = 2
# Source: the kernel's unistd.h of each machine.
_CLONE = {"x86_64": 56, "aarch64": 220}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


@dataclass(frozen=True, slots=True)
class Isolation:
    """What keeps a container apart.

    Attributes:
        mounts: It has its own view of the file system; without it, paths are offered as links.
        pids: It has its own processes, which end with its first one.
        user: All that inside a user namespace, because the engine is not root.

    Examples:
        >>> str(Isolation(mounts=True, pids=True, user=True))
        'user, mount and pid namespaces'
    """

    mounts: bool = False
    pids: bool = False
    user: bool = False

    def __str__(self) -> str:
        if not self.mounts:
            return "links"
        kinds = [name for name, has in (("user", self.user), ("mount", True), ("pid", self.pids)) if has]
        head = ", ".join(kinds[:-1])
        return f"{head} and {kinds[-1]} namespaces" if head else f"{kinds[-1]} namespaces"

    def fork(self) -> int:
        """Fork into these namespaces: 0 in the child, its pid in the parent.

        The child is no full Python fork (no hooks run in it): it may fork once more, wait and end.

        Raises:
            OSError: If the kernel refuses.
        """
        flags = _NEWNS * self.mounts | _NEWPID * self.pids | _NEWUSER * self.user
        if not flags:
            return os.fork()
        user, group = os.getuid(), os.getgid()
        # PyDLL keeps the interpreter's lock over the call: the child must hold it as its parent does
        libc = ctypes.PyDLL(None, use_errno=True)
        pid: int = libc.syscall(_CLONE[platform.machine()], flags | signal.SIGCHLD, 0, 0, 0, 0)
        if pid < 0:
            raise OSError(ctypes.get_errno(), f"no {self}: {os.strerror(ctypes.get_errno())}")
        if pid == 0 and self.user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        return pid


def isolation_here(folder: Path, wanted: str) -> Isolation:
    """The best isolation that this machine allows, found by trying it on *folder*.

    Args:
        folder: An empty folder to mount at, in a child's own namespace.
        wanted: ``"auto"``, ``"namespaces"`` (nothing less) or ``"links"`` (nothing more).

    Raises:
        EngineError: If namespaces are wanted, and the kernel allows none.
    """
    if wanted != "links" and platform.machine() in _CLONE:
        users = (True,) if os.getuid() else (False, True)
        for user in users:
            for pids in (True, False):
                candidate = Isolation(mounts=True, pids=pids, user=user)
                if _works(candidate, folder):
                    return candidate
    if wanted == "namespaces":
        raise EngineError(
            "isolation='namespaces' is asked for, and this kernel allows no mount namespaces to this user: run the "
            "engine as root, allow unprivileged user namespaces, or use isolation='links'"
        )
    return Isolation()


def _works(candidate: Isolation, folder: Path) -> bool:
    try:
        pid = candidate.fork()
    except OSError:
        return False
    if pid == 0:
        try:
            mount("none", "/", "", REC | _PRIVATE)
            mount("tmpfs", str(folder), "tmpfs", 0)
            if candidate.pids:
                mount("proc", str(folder), "proc", _NOSUID | _NODEV | _NOEXEC)
        except BaseException:  # noqa: BLE001 (a child must not go on as its parent would)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """Mount something, or change what is mounted.

    Raises:
        OSError: If the kernel refuses.
    """
    if flags & REMOUNT:
        kept = os.statvfs(target).f_flag
        flags |= sum(ours for theirs, ours in _LOCKED if kept & theirs)
    result = _libc().mount(source.encode(), os.fsencode(target), kind.encode(), flags, None)
    _check(result, f"mount {source} at {target}")


def begin_root(new_root: Path) -> None:
    """Let nothing that is mounted from now on reach the host, and begin an empty root."""
    mount("none", "/", "", REC | _PRIVATE)
    new_root.mkdir()
    mount("tmpfs", str(new_root), "tmpfs", 0)


def mount_proc(target: Path) -> None:
    """Show the processes of this pid namespace at *target*."""
    mount("proc", str(target), "proc", _NOSUID | _NODEV | _NOEXEC)


def pivot_into(new_root: Path) -> None:
    """Make *new_root* the root of this process, and let go of the old one."""
    os.chdir(new_root)
    _check(_libc().syscall(_PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(_libc().umount2(b".", _DETACH), "detach the old root")
    os.chdir("/")
