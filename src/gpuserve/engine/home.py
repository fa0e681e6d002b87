"""The state folder: where it is, who uses it, and what stands in the way of using it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from pathlib import Path

from gpuserve.engine.durable_files import make_folder
from gpuserve.exceptions import EngineError, StateError

__all__ = ["default_home", "no_temporary_folder", "take_home", "unusable"]

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}


def default_home() -> Path:
    """The state folder: ``GPUSERVE_HOME``, or the user's own state folder.

    Raises:
        StateError: If neither ``GPUSERVE_HOME`` nor a home directory is known.
    """
    for name, below in (("GPUSERVE_HOME", ""), ("XDG_STATE_HOME", "gpuserve")):
        if os.environ.get(name):
            return Path(os.environ[name]).absolute() / below
    home = os.environ.get("HOME")
    if home is None:
        with contextlib.suppress(RuntimeError):  # this user id may have no entry in /etc/passwd
            home = str(Path.home())
    if not home:
        raise StateError(
            "there is no place for the engine's state: HOME is empty or unset, and so is GPUSERVE_HOME. "
            "Set GPUSERVE_HOME to a folder that you may write."
        )
    return Path(home).absolute() / ".local" / "state" / "gpuserve"


def unusable(home: Path, error: OSError) -> StateError:
    """What *error* means for somebody who wants to use the state folder *home*."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    why = f"{error.strerror or error} ({name})"
    if error.errno in _FULL:
        return StateError(
            f"the engine's state folder {home} has no space left: {why}. Nothing that was acknowledged is lost. "
            "Free some space, or set GPUSERVE_HOME to another folder."
        )
    if error.errno in _NO_FOLDER:
        return StateError(
            f"the engine's state folder {home} is not a folder, nor can it become one: {why}. "
            "Set GPUSERVE_HOME to a folder that you may write."
        )
    return StateError(
        f"the engine's state folder {home} is not writable: {why}. Set GPUSERVE_HOME to a folder that you may write."
    )


def no_temporary_folder(error: OSError) -> EngineError:
    """What *error* means for somebody who wants a temporary folder."""
    return EngineError(
        f"no temporary folder can be made: {error.strerror or error}. Set TMPDIR to a folder that you may write."
    )


def take_home(home: Path, *, patience_s: float = 0.0) -> int:
    """Lock the state folder; the kernel lets go of it when this process ends, however it ends.

    Args:
        home: The folder, made if it is missing.
        patience_s: How long to wait for another engine on this folder to end.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        StateError: If another engine uses the folder, or it cannot be written.
    """
    with contextlib.ExitStack() as undo:
        try:
            make_folder(home)
            lock = os.open(home / "engine.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, lock)
            if not os.access(home, os.W_OK | os.X_OK):  # what is in it may be writable all the same
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            _wait_for(lock, home, time.monotonic() + patience_s)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise unusable(home, error) from error
        undo.pop_all()
    return lock


def _wait_for(lock: int, home: Path, deadline: float) -> None:
    while not _try_lock(lock):
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        left = deadline - time.monotonic()
        if left > 0 and _ended_within(owner, left):
            continue
        if _try_lock(lock):  # it let go between the two
            return
        raise StateError(
            f"another engine (pid {owner or 'unknown'}) uses the state folder {home}. Stop it with "
            "`gpuserve local down`, or end the program that it belongs to; or set GPUSERVE_HOME to another folder."
        )


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _ended_within(pid: str, seconds: float) -> bool:
    """Wait for the end of a process; false at once for one that is no more, or when the time is up."""
    try:
        handle = os.pidfd_open(int(pid))
    except (ValueError, OSError):
        return False
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
