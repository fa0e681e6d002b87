"""What an engine that is killed leaves to its successor: its address, and the token that clients hold.

A client's environment names a socket and a token. Both outlive a *kill*: the next engine on the same
state folder listens at the same path and takes the same token, so that clients which are still
running find it again. An engine that is *stopped* ends its session: socket and token are gone, and
the next one makes new ones. So a token that somebody may have copied ends with `gpuserve local down`.

The sockets lie in ``run`` under the state folder, where only its owner can put anything, or, where
that path is too long for a socket, in a private temporary folder that the session names. On a
loopback port no session is kept: anybody may take a port while no engine holds it, and would be sent
the token of those to come.

Source:
    A unix socket's path has at most 107 bytes on Linux (unix(7)), 103 on macOS.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuserve.engine.durable_files import write_durably
from gpuserve.engine.home import no_temporary_folder
from gpuserve.engine.state.ids import new_id
from gpuserve.exceptions import EngineError

__all__ = ["Session"]

_LONGEST_SOCKET_PATH = 103
_FILE = "session.json"
_PREFIX = "gpuserve-run-"
# Where every Unix has a short path that is of this machine alone.
_SHORT = "/tmp"  # noqa: S108 (mkdtemp makes a folder of this user's own below it)


@dataclass(frozen=True, slots=True)
class Session:
    """One engine's, or that of a killed one and its successors.

    Attributes:
        run_folder: Where sockets and running containers' files lie; 0700.
        kept: Whether a successor may take it over.
    """

    home: Path
    run_folder: Path
    token_secret: str = field(repr=False)
    object_key: bytes = field(repr=False)
    object_port: int = 0
    kept: bool = True

    @classmethod
    def begin(cls, home: Path, *, kept: bool) -> Session:
        """Take over what a killed engine left in *home*, or begin anew; the run folder is empty then."""
        for unfinished in home.glob(f".{_FILE}.*.tmp"):
            unfinished.unlink()
        left = _read(home)
        run_folder = _run_folder(home, str(left.get("run_folder", "")))
        fresh = cls(home, run_folder, f"as-{secrets.token_urlsafe(32)}", os.urandom(32), kept=kept)
        session = fresh._continuing(left) if kept and "token_secret" in left else fresh
        session.save()
        return session

    def _continuing(self, left: dict[str, Any]) -> Session:
        try:
            return replace(
                self,
                token_secret=str(left["token_secret"]),
                object_key=bytes.fromhex(left["object_key"]),
                object_port=int(left["object_port"]),
            )
        except (KeyError, TypeError, ValueError):  # another release wrote it
            return self

    def save(self) -> None:
        """Write down what a successor needs; only the run folder's name where nothing else may be kept."""
        kept: dict[str, Any] = {"home": _identity(self.home), "run_folder": str(self.run_folder)}
        if self.kept:
            kept |= {
                "token_secret": self.token_secret,
                "object_key": self.object_key.hex(),
                "object_port": self.object_port,
            }
        write_durably(self.home / _FILE, json.dumps(kept).encode(), 0o600)

    def end(self) -> None:
        """Leave no socket and no token."""
        shutil.rmtree(self.run_folder, ignore_errors=True)
        (self.home / _FILE).unlink(missing_ok=True)


def _identity(home: Path) -> list[str | int]:
    """What tells a state folder from a copy of it, whose engine must not answer in its place."""
    return [str(home.absolute()), home.stat().st_ino]


def _read(home: Path) -> dict[str, Any]:
    """What was left here, if nobody else can have read or written it."""
    try:
        descriptor = os.open(home / _FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
            return {}
        try:
            left = json.load(file)
        except ValueError:
            return {}
    return left if isinstance(left, dict) and left.get("home") == _identity(home) else {}


def _run_folder(home: Path, left: str) -> Path:
    """An empty private folder that sockets fit in; the one that was *left*, where it serves."""
    own, before = home.absolute() / "run", Path(left)
    reusable = _is_private(before)
    _empty(own)
    if _takes_sockets(own):
        if reusable:
            shutil.rmtree(before)
        return own
    own.rmdir()
    chosen = [before] if reusable else []
    if not reusable:
        for parent in (None, _SHORT):  # TMPDIR may be long as well
            try:
                chosen.append(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))
            except OSError as error:
                if parent is None:
                    raise no_temporary_folder(error) from error
                break
            if _takes_sockets(chosen[-1]):
                break
    for folder in chosen[:-1]:
        folder.rmdir()
    _empty(chosen[-1])
    if not _takes_sockets(chosen[-1]):
        chosen[-1].rmdir()
        tried = " and ".join(map(str, (own, *chosen)))
        raise EngineError(
            f"there is no place for the engine's sockets: {tried} have too long a path for sockets, or take "
            f"none: {_LONGEST_SOCKET_PATH} bytes are allowed with their names. "
            "Set GPUSERVE_HOME or TMPDIR to a shorter path, such as one below /tmp."
        )
    return chosen[-1]


def _empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)


def _takes_sockets(folder: Path) -> bool:
    """Whether a path as long as a container's can be a socket here: some shared file systems know none."""
    path = folder / f"{new_id('ta')}.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(os.fsencode(path))
        except OSError:
            return False
    path.unlink()
    return True


def _is_private(folder: Path) -> bool:
    """Whether this is a temporary folder that an engine of this user made."""
    if not folder.name.startswith(_PREFIX):
        return False
    try:
        about = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077
