"""The `BatchMapper` that an app's file declares, and the app that its target needs."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gpuserve.builders.batch import BatchMapper
from gpuserve.builders.detached import MapperHandle
from gpuserve.builders.lowering.mapper import RegisteredMapper
from gpuserve.exceptions import DeclarationError
from gpuserve.specs.batch import Shards

__all__ = ["DeclaredRun", "declared_run"]


@dataclass(frozen=True, slots=True)
class DeclaredRun:
    """What a file declares.

    Attributes:
        mapper: With what was given on the way in place of what it declares.
        app: The ``modal.App`` to run while it runs; ``None`` where the target is deployed, or a plain function.
    """

    mapper: BatchMapper | MapperHandle
    app: Any


def declared_run(file: Path, name: str = "", given: Mapping[str, Any] | None = None) -> DeclaredRun:
    """Import *file*, as modal does, and find what it declares.

    Args:
        file: A Python file.
        name: Of a subclass or an instance of `BatchMapper` in it; may be left out where there is one.
        given: Fields in place of the declared ones.

    Raises:
        DeclarationError: If the file has none, several, or none of that name.
    """
    module = _imported(file)
    found: dict[str, Any] = {key: value for key, value in vars(module).items() if _is_mapper(value, module)}
    if name and name not in found:
        raise DeclarationError(str(file), (f"{name!r} is no BatchMapper of it; there are: {_named(found)}",))
    if not name and len(found) != 1:
        raise DeclarationError(
            str(file),
            (
                f"it has {len(found)} mappers ({_named(found)}); write {file}::NAME"
                if found
                else "it declares no BatchMapper; subclass one, or assign one to a name",
            ),
        )
    chosen: Any = found[name] if name else next(iter(found.values()))
    mapper = _made(chosen, {key: value for key, value in (given or {}).items() if value is not None})
    return DeclaredRun(mapper, _app_for(mapper, module, file))


def _made(chosen: Any, given: Mapping[str, Any]) -> Any:
    declared = dict(chosen._declared) if isinstance(chosen, BatchMapper) else {}
    cls = chosen._gpuserve_plain if isinstance(chosen, RegisteredMapper) else chosen
    cls = type(chosen) if isinstance(chosen, BatchMapper) else cls
    output = declared.get("output", cls.output)
    if "output" in given and isinstance(output, Shards):  # another folder, of the same kind and in the same volume
        given = {**given, "output": Shards(given["output"], format=output.format, volume=output.volume)}
    return (cls if isinstance(chosen, BatchMapper) else chosen)(**{**declared, **given})


def _imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise DeclarationError(str(file), ("it is no Python file",))
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # and it stays: its functions are found by its name
    sys.path.insert(0, str(file.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _is_mapper(value: Any, module: ModuleType) -> bool:
    if inspect.isclass(value):
        return issubclass(value, BatchMapper) and value.__module__ == module.__name__
    if isinstance(value, RegisteredMapper):
        return value._gpuserve_plain.__module__ == module.__name__
    return isinstance(value, BatchMapper)


def _app_for(mapper: BatchMapper | MapperHandle, module: ModuleType, file: Path) -> Any:
    import modal

    target = mapper.declaration(source=(), output=".").target
    if isinstance(target, str) or type(target).__module__.partition(".")[0] not in {"modal", "gpuserve"}:
        return None
    apps = {key: value for key, value in vars(module).items() if isinstance(value, modal.App)}
    if len(apps) == 1:
        return next(iter(apps.values()))
    if "app" in apps:
        return apps["app"]
    raise DeclarationError(str(file), (f"its target needs a modal.App named app; there are: {_named(apps)}",))


def _named(found: Mapping[str, Any]) -> str:
    return ", ".join(found) or "none"
