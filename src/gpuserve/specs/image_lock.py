"""The lock of an image: which declaration a lock file was made for, and who writes it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gpuserve.specs.image_layers import Base, Layer, Packages

__all__ = ["LOCKING", "LOCK_PLATFORM", "inputs_of", "lock_faults", "lock_head"]

# Modal's machines, with a libc as old as that of the oldest base in use (Ubuntu 20.04).
LOCK_PLATFORM = "x86_64-manylinux_2_31"
LOCKING: ContextVar[Callable[[Any], None] | None] = ContextVar("LOCKING", default=None)
"""Set while `gpuserve lock` imports an app: it is handed each image that is locked, and writes the file."""

_HEAD = re.compile(r"# gpuserve image lock ([0-9a-f]{64}) ")


def inputs_of(base: Base, layers: Iterable[Layer]) -> str:
    """A digest of all that a lock is resolved from, but for what gpuserve itself adds."""
    asked = [
        [sorted(layer.requirements), layer.index, layer.extra_index] for layer in layers if isinstance(layer, Packages)
    ]
    text = json.dumps([base.python, LOCK_PLATFORM, asked], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def lock_head(base: Base, layers: Iterable[Layer]) -> str:
    """The first line of a lock file."""
    return f"# gpuserve image lock {inputs_of(base, layers)} for Python {base.python} on {LOCK_PLATFORM}\n"


def lock_faults(path: str, inputs: str) -> Iterator[str]:
    """Why the file cannot be the lock of a declaration with these *inputs*."""
    try:
        with Path(path).expanduser().open(encoding="utf-8") as file:
            found = _HEAD.match(file.readline())
    except (OSError, RuntimeError, ValueError) as error:  # no path, or no text
        why = getattr(error, "strerror", None) or error
        yield f"{path!r} cannot be read ({why}); make it: gpuserve lock FILE.py"
        return
    if found is None:
        yield f"{path!r} is no lock of an image; write it anew: gpuserve lock FILE.py"
    elif found[1] != inputs:
        yield f"{path!r} was made for other requirements than are declared; write it anew: gpuserve lock FILE.py"
