"""Load by wrk, one point at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["find_wrk", "wrk"]

_SCRIPT = Path(__file__).with_name("bodies.lua")


def find_wrk() -> str:
    """The program.

    Raises:
        FileNotFoundError: If it is not installed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise FileNotFoundError("wrk makes the load and is not installed; run: apt-get install -y wrk")
    return program


def wrk(
    url: str, bodies: Path, *, key: str, seconds: int, clients: int = 32, seed: int = 1, timeout_s: int = 30
) -> dict[str, Any]:
    """Requests a second and latencies of *url*, asked by *clients* that each wait for their answer.

    Raises:
        RuntimeError: If any request failed: its answer was not worth measuring.
    """
    command = [
        find_wrk(),
        "-t1",
        f"-c{clients}",
        f"-d{seconds}s",
        "--timeout",
        f"{timeout_s}s",
        "-s",
        str(_SCRIPT),
        url,
    ]
    done = subprocess.run(
        [*command, "--", str(bodies), key, str(seed)], stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES "))
    found: dict[str, Any] = json.loads(line.removeprefix("FIGURES "))
    if found["errors"] or not found["requests"]:
        raise RuntimeError(f"{url}: {found['errors']} of {found['requests']} requests failed:\n{done.stdout}")
    found["per_s"] = found["requests"] / found["seconds"]
    return found
