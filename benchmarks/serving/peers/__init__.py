"""The peers, each in an environment of its own beside this one.

They share this environment's torch, transformers and uvicorn, so that all sides run the same; what only a peer needs
is installed there.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.environments import Environments

__all__ = ["PROGRAMS", "install", "python", "versions"]

PROGRAMS = Path(__file__).parent
# By the name of the program here; plain FastAPI is what this environment has.
_PINS = {"lit": ("litserve==0.2.19",), "ray_serve": ("ray[serve]==2.60.0",), "bento": ("bentoml==1.4.40",)}
_ENVIRONMENTS = Environments(_PINS, "python -m benchmarks.serving --install", Path(__file__).parents[1] / ".venv")

install, python = _ENVIRONMENTS.install, _ENVIRONMENTS.python


def versions() -> dict[str, str]:
    """What the peers run."""
    found = {}
    for name, (pin,) in _PINS.items():
        package = pin.partition("==")[0].partition("[")[0]
        names = [package, "uvicorn", "starlette", *(["fastapi"] if name == "lit" else [])]
        found[name] = _ENVIRONMENTS.versions(name, names)
    return found
