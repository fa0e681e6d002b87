"""What a deployment sent to the engine, as JSON that is the same for the same app on every machine."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from gpuserve.engine import LocalEngine
from gpuserve.engine.services.functions import FunctionService

# What gpuserve pins to the versions of the machine that deploys; an example that pins one itself says so in its file.
OWN = (
    "fastapi",
    "httptools",
    "huggingface_hub",
    "orjson",
    "packaging",
    "prometheus-client",
    "pydantic",
    "uvicorn",
    "uvloop",
)
# Ids, sizes of pickles and fields that a client fills with the versions or defaults of this machine.
_LEFT_OUT = {"imageId", "mountIds", "secretIds", "objectDependencies", "classSerialized", "functionSerialized"}
_LEFT_OUT |= {"rankedFunctions", "implementationName", "functionSchema", "snapshotDebug", "runtimeDebug", "i6pnEnabled"}


class Recorder:
    """Keeps what clients send to create functions and classes, as it comes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Listen on every engine that starts from now on."""
        self.functions: dict[str, list[Any]] = {}
        self.classes: dict[str, list[Any]] = {}
        for name, kept in (("FunctionCreate", self.functions), ("ClassCreate", self.classes)):
            patch.setattr(FunctionService, name, _recording(getattr(FunctionService, name), kept))

    def sent_of(self, engine: LocalEngine, app_name: str) -> dict[str, Any]:
        """Every function and class of a deployed app, each id replaced by what it stands for."""
        core = engine.core
        app_id = next(one.id for one in core.registry.apps.values() if one.name == app_name)
        functions = {}
        for request in self.functions.get(app_id, []):
            definition = request.function_data if request.HasField("function_data") else request.function
            functions[definition.function_name] = _function(core, definition)
        classes = [
            {"public": not one.only_class_function, "methods": sorted(method.function_name for method in one.methods)}
            for one in self.classes.get(app_id, [])
        ]
        return {"functions": functions, "classes": classes}


def _recording(handle: Any, kept: dict[str, list[Any]]) -> Any:
    @functools.wraps(handle)
    def record(self: Any, request: Any, caller: Any) -> Any:
        copy = type(request)()
        copy.CopyFrom(request)
        kept.setdefault(request.app_id, []).append(copy)
        return handle(self, request, caller)

    return record


def _function(core: Any, definition: Any) -> dict[str, Any]:
    """A Function, or a FunctionData with the same fields and one Function for each GPU in the order of preference."""
    ranked = [_function(core, one.function) for one in getattr(definition, "ranked_functions", ())]
    first = definition.ranked_functions[0].function if ranked else definition
    sent = {key: value for key, value in MessageToDict(definition).items() if key not in _LEFT_OUT}
    if ranked:
        # all but the GPU is the same in each
        assert all({**one, "resources": 0} == {**ranked[0], "resources": 0} for one in ranked)
        return {**sent, **ranked[0], "rankedResources": [one["resources"] for one in ranked]}
    sent["image"] = [_layer(core, layer) for layer in core.registry.image_layers(first.image_id)]
    sent["secrets"] = [_secret(core, one) for one in first.secret_ids]
    sent["files"] = sorted({_place(one.path) for one in core.mounts.files(first.mount_ids)})
    for mount in sent.get("volumeMounts", []):
        mount["volume"] = core.volumes.metadata(mount.pop("volumeId")).name
    for method in sent.get("methodDefinitions", {}).values():
        method.pop("functionSchema", None)
    return sent


def _layer(core: Any, layer: Any) -> dict[str, Any]:
    sent = {
        key: value
        for key, value in MessageToDict(layer).items()
        if key not in {"baseImages", "contextMountId", "contextFiles"}
    }
    sent["dockerfileCommands"] = [_unversioned(line) for line in sent.get("dockerfileCommands", [])]
    if layer.context_mount_id:
        files = sorted(one.path for one in core.mounts.files([layer.context_mount_id]))
        sent["context"] = core.mounts.name(layer.context_mount_id) or files
    return sent


def _unversioned(line: str) -> str:
    for name in OWN:
        line = re.sub(rf"(?<![\w-]){name}==[\w.+]+", f"{name}==(installed here)", line)
    return line


def _secret(core: Any, secret_id: str) -> dict[str, Any]:
    one = core.secrets._objects.get(secret_id)
    return {"name": one.name, "keys": sorted(core.secrets.environment_of([secret_id]))}


def _place(path: str) -> str:
    """The folder of gpuserve's own files stands for all of them."""
    return "/root/gpuserve/…" if path.startswith("/root/gpuserve/") else path
