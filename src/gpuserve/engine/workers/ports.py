"""Which process has a TCP port of this machine, for an error that can name it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from gpuserve.exceptions import EngineError, PortInUseError

__all__ = ["cannot_listen", "listener_of"]

_LISTENS = "0A"


def listener_of(port: int) -> int | None:
    """The pid of a process that listens on *port*; ``None`` where nobody does, or we may not look."""
    inodes: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*/fd") if inodes else ():
        with contextlib.suppress(OSError):  # not ours, or gone
            if any(str(one.readlink()) in inodes for one in folder.iterdir()):
                return int(folder.parent.name)
    return None


def cannot_listen(port: int, error: OSError) -> EngineError:
    """The error to raise where listening on *port* of loopback failed with *error*."""
    if error.errno != errno.EADDRINUSE:
        return EngineError(
            f"port {port} of 127.0.0.1 cannot be listened on: {os.strerror(error.errno or 0)}. "
            "Choose another port, or --port 0 for any free one."
        )
    pid = listener_of(port)
    owner = f"pid {pid}" if pid else "a process that cannot be looked up"
    return PortInUseError(
        f"port {port} of 127.0.0.1 is in use by {owner}. Stop it, or choose another port (--port 0: any free one)."
    )
