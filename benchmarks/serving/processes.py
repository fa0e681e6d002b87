"""Servers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["free_port", "process"]


@contextlib.contextmanager
def process(
    command: list[str], environment: dict[str, str], log: Any, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server while the block runs; nothing of it is left behind."""
    whole = {**os.environ, **environment}
    running = subprocess.Popen(command, env=whole, cwd=folder, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, 9)  # workers that outlive it would be loaded beside the next


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
        return port
