"""The Pythons of this machine, by minor version."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuserve.exceptions import EngineError

__all__ = ["Interpreter", "find_interpreter"]

_PROBE_LIMIT_S = 10.0
_PROBE = "import sys; print('.'.join(map(str, sys.version_info[:3])), sys.implementation.name, sys._base_executable)"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that can be run.

    Attributes:
        path: The executable, of no virtual environment.
        version: As in ``"3.12.1"``.
    """

    path: Path
    version: str

    @property
    def minor(self) -> str:
        """As in ``"3.12"``."""
        return self.version.rpartition(".")[0]


def find_interpreter(minor: str | None) -> Interpreter:
    """The CPython of that minor version, of this process's where none is asked for.

    Looked for are this process's own, the ``PATH``, and what pyenv and uv have installed.

    Raises:
        EngineError: If there is none, with those that there are and the way to install it.
    """
    wanted = minor or f"{sys.version_info.major}.{sys.version_info.minor}"
    for one in _candidates(wanted):
        found = _probe(str(one))
        if found is not None and found.minor == wanted:
            return found
    others = {found.minor for one in _candidates("3.*") if (found := _probe(str(one))) is not None}
    raise EngineError(
        f"the image has Python {wanted}, and this machine has {', '.join(sorted(others, key=_order))}: install it "
        f"(uv python install {wanted}), or write an image of a Python that is here"
    )


def _order(minor: str) -> tuple[int, ...]:
    return tuple(int(part) for part in minor.split("."))


def _candidates(minor: str) -> Iterator[Path]:
    yield Path(sys.executable)
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if folder and not folder.endswith("/shims"):  # pyenv's, which run one of many, or none
            yield from sorted(Path(folder).glob(f"python{minor}"))
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"))
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python"))
    for root, pattern in ((pyenv / "versions", f"{minor}.*"), (uv, f"cpython-{minor}.*")):
        for folder_of_one in sorted(root.glob(pattern), key=lambda one: one.stat().st_mtime, reverse=True):
            yield folder_of_one / "bin" / "python3"


@functools.cache
def _probe(path: str) -> Interpreter | None:
    """What a file is when it is run as a Python; nothing if it is none that Modal would know."""
    executable = shutil.which(path)
    if executable is None:
        return None
    try:
        done = subprocess.run(
            [executable, "-I", "-S", "-c", _PROBE], capture_output=True, text=True, check=False, timeout=_PROBE_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.strip().split(" ", 2)
    if done.returncode != 0 or len(words) != 3 or words[1] != "cpython":  # noqa: PLR2004 (what the probe prints)
        return None
    return Interpreter(Path(words[2]), words[0])
