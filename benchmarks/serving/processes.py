"""Servers in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["answer", "free_port", "process", "wait_for"]


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


def answer(url: str, text: str, key: str) -> Any:
    """What a server at *url* answers for *text*."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, json.dumps({"input": text}).encode(), headers)  # noqa: S310 (loopback)
    with urllib.request.urlopen(request, timeout=60) as given:  # noqa: S310
        return json.load(given)["output"]


def wait_for(url: str, key: str, seconds: float, running: subprocess.Popen[bytes] | None = None) -> None:
    """Until it answers.

    Raises:
        RuntimeError: If its process ended, or it did not answer within *seconds*.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if running is not None and running.poll() is not None:
            raise RuntimeError(f"its process ended with {running.returncode}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            answer(url, "hello", key)
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer within {seconds:g} s")
