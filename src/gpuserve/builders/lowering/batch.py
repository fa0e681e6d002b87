"""Targets of a `BatchMapper` that run in Modal."""

from __future__ import annotations

from typing import Any

import modal

from gpuserve.builders.registered import CHUNK, RegisteredServer, RemoteMethod, ServerHandle
from gpuserve.exceptions import DeclarationError
from gpuserve.runtime.ports import ModalFunctionTarget
from gpuserve.specs.batch import BatchDeclaration
from gpuserve.specs.budget import HourlyCost
from gpuserve.specs.server import ServerDeclaration

__all__ = ["modal_target"]


def modal_target(declaration: BatchDeclaration) -> ModalFunctionTarget:
    """The function to call with each batch.

    Raises:
        DeclarationError: If the target is nothing that can be called so.
    """
    target = declaration.target
    if isinstance(target, str):
        return _deployed(target, declaration.method)
    if isinstance(target, RegisteredServer):
        return _served(target(), declaration.method, target._gpuserve_name, target._gpuserve_declaration)
    if isinstance(target, ServerHandle):
        return _served(target, declaration.method, "server", None)
    if isinstance(target, RemoteMethod):
        return ModalFunctionTarget(target.chunked, f"server.{target.name}", {"method": target.name}, None)
    if isinstance(target, modal.Function):
        return ModalFunctionTarget(target, _name(target), {}, _price(target))
    fault = (
        f"target got {target!r}; write a registered WarmModelServer, a modal.Function that takes a list, "
        f"'app/Class.method' of a deployed one, or a function of a list"
    )
    raise DeclarationError("BatchMapper", (fault,))


def _served(
    handle: ServerHandle, method: str | None, name: str, declared: ServerDeclaration | None
) -> ModalFunctionTarget:
    known = sorted(handle._batched)
    chosen = method or (known[0] if len(known) == 1 else None)
    if chosen not in known:
        fault = f"method got {method!r}; {name} has the batched methods {', '.join(known) or 'none'}"
        raise DeclarationError("BatchMapper", (fault,))
    cost = declared.hourly_cost if declared is not None else None
    price = cost.usd / cost.containers if cost is not None else None
    return ModalFunctionTarget(getattr(handle._instance, CHUNK), f"{name}.{chosen}", {"method": chosen}, price)


def _deployed(text: str, method: str | None) -> ModalFunctionTarget:
    app, _, name = text.partition("/")
    if not app or not name:
        fault = f"target got {text!r}; write 'app/function' or 'app/Class.method' of a deployed app"
        raise DeclarationError("BatchMapper", (fault,))
    cls, _, named = name.partition(".")
    chosen = named or method
    if chosen is None:
        return ModalFunctionTarget(modal.Function.from_name(app, name), text, {}, None)
    instance = modal.Cls.from_name(app, cls)()
    return ModalFunctionTarget(getattr(instance, CHUNK), f"{cls}.{chosen}", {"method": chosen}, None)


def _declared(function: Any, name: str) -> Any:
    """What a function that was declared here knows of itself; ``None`` of one that is looked up by its name."""
    try:
        return getattr(function, name)
    except (AttributeError, AssertionError):  # modal asserts that it was declared
        return None


def _name(function: Any) -> str:
    """What the function is called in code; a look-up by name says so itself."""
    return str(_declared(function, "_tag_") or repr(function))


def _price(function: Any) -> float | None:
    """What one container of the function costs an hour, where its declaration is here to say."""
    spec = _declared(function, "_spec_")
    if spec is None:
        return None
    gpus = (spec.gpus,) if isinstance(spec.gpus, str) else tuple(spec.gpus or ())
    cpu = spec.cpu[0] if isinstance(spec.cpu, tuple) else spec.cpu
    memory = spec.memory[0] if isinstance(spec.memory, tuple) else spec.memory
    return HourlyCost.of(gpus=gpus, cpu=cpu, memory_mib=memory).usd
