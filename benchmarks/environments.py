"""Peers in environments of their own beside this one, which they see too: only what a peer needs is installed there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Environments"]


class Environments:
    """Virtual environments by the names of the peers' programs.

    Args:
        pins: What each installs.
        hint: The command that installs them.
        folder: Where they are: ``GPUSERVE_BENCH_PEERS``, or ``benchmarks/.venv``.
    """

    def __init__(self, pins: Mapping[str, Sequence[str]], hint: str, folder: Path | None = None) -> None:
        here = Path(__file__).parent / ".venv"
        self._folder = folder if folder is not None else Path(os.environ.get("GPUSERVE_BENCH_PEERS", here))
        self._pins, self._hint = pins, hint

    def install(self) -> None:
        """Make them: a few minutes."""
        own = next(entry for entry in sys.path if entry.endswith("site-packages"))
        for name, pins in self._pins.items():
            folder = self._folder / name
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            site = next(folder.glob("lib/python*/site-packages"))
            (site / "zz_shared.pth").write_text(own + "\n")
            subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "--no-input", *pins], check=True)

    def python(self, name: str) -> str:
        """The interpreter that runs a peer; this one where it needs nothing of its own.

        Raises:
            FileNotFoundError: If its environment was not made yet.
        """
        program = self._folder / name / "bin" / "python" if name in self._pins else Path(sys.executable)
        if not program.exists():
            raise FileNotFoundError(f"{program} is not there; make it with: {self._hint}")
        return str(program)

    def versions(self, name: str, packages: Sequence[str]) -> str:
        """What a peer runs, as in ``ray 2.60.0``."""
        program = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {packages!r}}}))"
        done = subprocess.run([self.python(name), "-c", program], stdout=subprocess.PIPE, text=True, check=True)
        return " ".join(f"{key} {value}" for key, value in json.loads(done.stdout).items())
