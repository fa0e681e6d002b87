"""From a function's definition to everything that its container needs to start."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from grpclib.exceptions import GRPCError

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.records import Function
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.workers.host_image import ImagePlan
from gpuserve.engine.workers.launcher import ContainerSpec, SourceFile, VolumeBind
from gpuserve.engine.workers.server_port import refuse_taken_port
from gpuserve.engine.workers.tasks import Task
from gpuserve.engine.workers.venvs import Venv
from gpuserve.exceptions import EngineError

__all__ = ["Assembly", "MountedFile"]


class MountedFile(Protocol):
    """A file of a mount: where it belongs, and where its bytes lie."""

    @property
    def path(self) -> str:
        """The path in the container."""

    @property
    def host(self) -> Path:
        """The file that holds the bytes."""

    @property
    def mode(self) -> int:
        """Its permission bits."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """Looks up what a definition only names."""

    registry: Registry
    layout: Callable[[Function], api_pb2.AppLayout]
    secrets: Callable[[Iterable[str]], Mapping[str, str]]
    mounted: Callable[[Iterable[str]], Iterable[MountedFile]]
    volume_folder: Callable[[str], Path]
    volume_metadata: Callable[[str], api_pb2.VolumeMetadata]
    plan: Callable[[str], ImagePlan]
    importable: Callable[[ImagePlan], frozenset[str] | None]
    door_url: Callable[[Task], str]
    environment: Callable[[str], Awaitable[Venv | None]]

    async def compose(self, task: Task, function: Function) -> ContainerSpec:
        """Everything for one container of *function*.

        Raises:
            EngineError: If something that the definition names is not there any more, or its image cannot be built.
        """
        try:
            return self._compose(task, function, await self.environment(function.definition.image_id))
        except GRPCError as error:  # what the services say to a client, of whom there is none here
            raise EngineError(error.message) from error

    def _compose(self, task: Task, function: Function, venv: Venv | None) -> ContainerSpec:
        definition = function.definition
        refuse_taken_port(definition)
        app = self.registry.apps[function.app_id]
        plan = self.plan(definition.image_id)
        files = {path: SourceFile(path, one.host, one.mode) for path, one in plan.files.items()}
        for one in self.mounted(definition.mount_ids):
            path = _absolute(one.path)
            files[path] = SourceFile(path, one.host, one.mode)
        environment = {**plan.env, **self.secrets(definition.secret_ids)}
        return ContainerSpec(
            task_id=task.id,
            arguments=self._arguments(task, function).SerializeToString(),
            environment=environment,
            server_url=self.door_url(task),
            files=tuple(files.values()),
            volumes=tuple(self._bind(mount) for mount in definition.volume_mounts),
            workdir=plan.workdir,
            packages=self.importable(plan) if definition.image_id and venv is None else None,
            venv=venv,
            image_id=definition.image_id,
            environment_name=app.environment,
        )

    def _bind(self, mount: api_pb2.VolumeMount) -> VolumeBind:
        folder = self.volume_folder(mount.volume_id)
        if mount.HasField("sub_path") and mount.sub_path:
            inner = (folder / mount.sub_path.lstrip("/")).resolve()
            if not inner.is_relative_to(folder.resolve()):
                raise EngineError(
                    f"the sub_path {mount.sub_path!r} of the volume at {mount.mount_path} leads out of it"
                )
            inner.mkdir(parents=True, exist_ok=True)
            folder = inner
        return VolumeBind(path=mount.mount_path, host=folder, read_only=mount.read_only)

    def _arguments(self, task: Task, function: Function) -> api_pb2.ContainerArguments:
        layout = self.layout(function)
        base_id = function.base_id or function.id
        if function.base_id:
            # the container finds its own handle under its function's name
            layout.function_ids[function.definition.function_name] = base_id
        known = {one.object_id for one in layout.objects}
        for dependency in function.definition.object_dependencies:
            if dependency.object_id not in known:
                layout.objects.append(self._object(dependency.object_id))
                known.add(dependency.object_id)
        definition = api_pb2.Function()
        definition.CopyFrom(function.definition)
        return api_pb2.ContainerArguments(
            task_id=task.id,
            function_id=function.id,
            app_id=function.app_id,
            function_def=definition,
            serialized_params=function.serialized_params,
            environment_name=self.registry.apps[function.app_id].environment,
            app_layout=layout,
        )

    def _object(self, object_id: str) -> api_pb2.Object:
        found = api_pb2.Object(object_id=object_id)
        if object_id.startswith("vo-"):
            found.volume_metadata.CopyFrom(self.volume_metadata(object_id))
        return found


def _absolute(path: str) -> str:
    return path if PurePosixPath(path).is_absolute() else f"/root/{path}"
