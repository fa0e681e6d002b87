"""What servers, jobs and trainings alike give their Modal function: GPUs, secrets and volumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from gpuserve.specs.gpu import parse_gpu
from gpuserve.specs.secret import SecretSpec

__all__ = ["MOUNTABLE", "Gpus", "Secrets"]


def _known(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    for name in (value,) if isinstance(value, str) else value or ():
        parse_gpu(name)
    return value


def _of_modal(value: tuple[Any, ...]) -> tuple[Any, ...]:
    for one in value:
        # modal is not imported here; its own secrets are known by where their class lives
        if not isinstance(one, SecretSpec) and type(one).__module__.partition(".")[0] != "modal":
            raise ValueError("write SecretSpec(name=…) or a modal.Secret for each")
    return value


def _mountable(value: Mapping[str, Any]) -> Mapping[str, Any]:
    for path in value:
        if not path.startswith("/") or ".." in path.split("/") or path == "/":
            raise ValueError(f"{path!r} is not a folder to mount at; write an absolute path such as '/models'")
    return value


Gpus = Annotated[str | tuple[str, ...] | None, AfterValidator(_known)]
"""A GPU as in ``"L4"`` or ``"H100:2"``, or several in the order of preference."""

Secrets = Annotated[tuple[Any, ...], AfterValidator(_of_modal)]
"""SecretSpec or modal.Secret objects."""

MOUNTABLE = AfterValidator(_mountable)
"""For ``Annotated[Mapping[str, Any], MOUNTABLE]``: modal.Volume objects by the absolute path of their mount."""
