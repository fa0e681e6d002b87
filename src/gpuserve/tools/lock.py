"""Write the lock files of an app's images: every package with its version and its hashes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gpuserve.builders.lowering.image import locked_requirements
from gpuserve.exceptions import GpuserveError
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.image_layers import Packages
from gpuserve.specs.image_lock import LOCK_PLATFORM, LOCKING, lock_head

__all__ = ["LockFailedError", "Locked", "lock_app"]


class LockFailedError(GpuserveError):
    """A lock could not be written; the message is uv's."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A lock file that was written, and how many packages it names."""

    path: Path
    packages: int


def lock_app(file: Path, *, upgrade: bool = False) -> list[Locked]:
    """Import an app's *file*, and write the lock of each `ImageSpec` that it declares `locked`.

    Versions in an older lock are kept where they still serve, unless *upgrade*.

    Raises:
        LockFailedError: If uv is not installed, or finds no versions that go together.
    """
    written: dict[Path, Locked] = {}

    def write(spec: ImageSpec) -> None:
        done = _write(spec, upgrade=upgrade)
        written[done.path] = done

    token = LOCKING.set(write)
    try:
        _import(file)
    finally:
        LOCKING.reset(token)
    return list(written.values())


def _import(file: Path) -> None:
    loader = importlib.util.spec_from_file_location(file.stem, file)
    if loader is None or loader.loader is None:
        raise LockFailedError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(loader)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent))  # as modal does
    try:
        loader.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
        del sys.modules[file.stem]


def _write(spec: ImageSpec, *, upgrade: bool) -> Locked:
    if spec.lock is None or spec.base.python is None:
        raise LockFailedError("the image is not locked")
    path = Path(spec.lock).expanduser()
    fresh = path.with_name(f"{path.name}.new")
    if path.is_file() and not upgrade:
        fresh.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    command = [
        *(_uv(), "pip", "compile", "-", "--output-file", str(fresh), "--quiet", "--generate-hashes"),
        *("--python-version", spec.base.python, "--python-platform", LOCK_PLATFORM),
        *("--emit-index-url", "--no-header", "--no-annotate", "--no-config"),
    ]
    for layer in spec.layers:
        if isinstance(layer, Packages):
            for address in (layer.index, layer.extra_index):
                command += ["--index", address] if address is not None else []
    asked = "".join(f"{one}\n" for one in locked_requirements(spec))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise LockFailedError(f"{path} is not written: uv finds no versions that go together.\n{done.stderr.strip()}")
    text = fresh.read_text(encoding="utf-8")
    fresh.write_text(lock_head(spec.base, spec.layers) + text, encoding="utf-8")
    fresh.replace(path)
    return Locked(path, sum("==" in line for line in text.splitlines() if not line.startswith((" ", "#", "-"))))


def _uv() -> str:
    try:
        from uv import find_uv_bin
    except ModuleNotFoundError:
        raise LockFailedError("uv is not installed here; install it: pip install 'gpuserve[images]'") from None
    return str(find_uv_bin())
