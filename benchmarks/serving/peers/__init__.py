"""The peers, each in an environment of its own beside this one.

They share this environment's torch, transformers and uvicorn, so that all sides run the same; what only a peer needs
is installed there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

__all__ = ["PROGRAMS", "install", "python", "versions"]

PROGRAMS = Path(__file__).parent
_FOLDER = Path(os.environ.get("GPUSERVE_BENCH_PEERS", Path(__file__).parents[1] / ".venv"))
# By the name of the program here; plain FastAPI is what this environment has.
_PINS = {"lit": "litserve==0.2.19", "ray_serve": "ray[serve]==2.60.0", "bento": "bentoml==1.4.40"}


def install() -> None:
    """Make the environments: some 500 MB, a few minutes."""
    own = next(entry for entry in sys.path if entry.endswith("site-packages"))
    for name, pin in _PINS.items():
        folder = _FOLDER / name
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "zz_shared.pth").write_text(own + "\n")
        subprocess.run([str(folder / "bin/python"), "-m", "pip", "install", "--no-input", pin], check=True)


def python(name: str) -> str:
    """The interpreter that runs a peer.

    Raises:
        FileNotFoundError: If its environment was not made yet.
    """
    program = _FOLDER / name / "bin" / "python" if name in _PINS else Path(sys.executable)
    if not program.exists():
        raise FileNotFoundError(f"{program} is not there; make it with: python -m benchmarks.serving --install")
    return str(program)


def versions() -> dict[str, str]:
    """What the peers run."""
    found = {}
    for name, pin in _PINS.items():
        package = pin.partition("==")[0].partition("[")[0]
        names = [package, "uvicorn", "starlette", *(["fastapi"] if name == "lit" else [])]
        program = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
        done = subprocess.run([python(name), "-c", program], stdout=subprocess.PIPE, text=True, check=True)
        found[name] = " ".join(f"{key} {value}" for key, value in json.loads(done.stdout).items())
    return found
