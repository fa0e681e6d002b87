"""Images: each layer is kept as it was sent; in host mode compared with this interpreter, in venv mode built."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.mounts import MountService
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.workers.host_image import ImagePlan, LayerContext, judge_image, plan_image
from gpuserve.engine.workers.image_files import HostFile
from gpuserve.engine.workers.import_guard import normalised
from gpuserve.engine.workers.venv_steps import notes_of_venv
from gpuserve.engine.workers.venvs import Build, Venv, Venvs
from gpuserve.exceptions import EngineError

__all__ = ["ImageService"]


class ImageService:
    """Image layers by content, and what host mode makes of them."""

    def __init__(
        self,
        registry: Registry,
        mounts: MountService,
        *,
        strict: bool,
        venvs: Venvs | None = None,
        secrets: Callable[[Iterable[str]], Mapping[str, str]] = lambda _ids: {},
    ) -> None:
        """Build with *venvs*, or, without, compare: refuse differing images where *strict*; else only say so."""
        self._registry, self._mounts, self._strict = registry, mounts, strict
        self._venvs, self._secrets = venvs, secrets
        self._secret_ids: dict[str, list[str]] = {}
        self._builds: dict[str, Build] = {}
        self._plans: dict[str, ImagePlan] = {}
        self._installed: tuple[tuple[int, ...], dict[str, str]] = ((), {})

    def plan(self, image_id: str) -> ImagePlan:
        """What an image asks for; an id stands for one content."""
        known = self._plans.get(image_id)
        if known is None:
            known = self._plans[image_id] = plan_image(self._registry.image_layers(image_id), self._context)
        return known

    async def environment(self, image_id: str) -> Venv | None:
        """The environment that an image's containers run in, built if it is not there; none in host mode.

        Raises:
            EngineError: If it cannot be built.
        """
        if self._venvs is None or not image_id:
            return None
        return await self._venvs.begin(self.plan(image_id)).result()

    def _context(self, layer: api_pb2.Image) -> LayerContext:
        mount_id = layer.context_mount_id
        found = self._mounts.files([mount_id]) if mount_id else []
        files = {one.path.lstrip("/"): HostFile(one.host, one.mode) for one in found}
        for one in layer.context_files:
            files[one.filename.lstrip("/")] = HostFile(self._mounts.keep_bytes(one.data))
        secrets = self._secrets(self._secret_ids.get(_digest(layer), ())) if self._venvs is not None else {}
        return LayerContext(self._mounts.name(mount_id) if mount_id else "", files, secrets)

    def _judge(self, image_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self._venvs is not None:
            return (), notes_of_venv(self.plan(image_id)) if image_id else ()
        return judge_image(self.plan(image_id), self._versions()) if image_id else ((), ())

    def _versions(self) -> dict[str, str]:
        """What is installed now; read again when something was installed."""
        stamp = tuple(Path(entry).stat().st_mtime_ns for entry in sys.path if Path(entry).is_dir())
        if stamp != self._installed[0]:
            self._installed = (stamp, {normalised(one.name): one.version for one in metadata.distributions()})
        return self._installed[1]

    def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.ImageGetOrCreateResponse:
        """Take in one layer; its id is derived from all that it holds, and not from who sent it."""
        layer = api_pb2.Image()
        layer.CopyFrom(request.image)
        layer.ClearField("secret_ids")  # they are for the build, and of this client alone
        if layer.context_mount_id:
            layer.context_mount_id = self._mounts.keep(layer.context_mount_id)
        image_id = _digest(layer)
        if list(request.image.secret_ids) != self._secret_ids.get(image_id, []):
            self._secret_ids[image_id] = list(request.image.secret_ids)
            self._plans.clear()
        self._registry.save_image(image_id, layer)
        if self._begins_build(image_id) or self._said(image_id):
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id)  # the client asks for the build's log
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=self._result(image_id), metadata=api_pb2.ImageMetadata()
        )

    def _begins_build(self, image_id: str) -> bool:
        if self._venvs is None or self._venvs.is_there(self.plan(image_id)):
            return False
        with contextlib.suppress(EngineError):  # told to whoever asks for the build's log
            self._builds[image_id] = self._venvs.begin(self.plan(image_id))
        return True

    def _said(self, image_id: str) -> tuple[str, ...]:
        """What there is to say of this layer, and was not said of those below."""
        problems, notes = self._judge(image_id)
        layers = self._registry.image_layers(image_id)
        below = layers[-1].base_images[0].image_id if layers and layers[-1].base_images else ""
        problems_below, notes_below = self._judge(below)
        return tuple(line for line in (*notes, *problems) if line not in {*notes_below, *problems_below})

    def _result(self, image_id: str) -> api_pb2.GenericResult:
        problems, _notes = self._judge(image_id)
        if problems and self._strict:
            faults = "\n".join(f"  - {problem}" for problem in problems)
            text = (
                f"this image asks for packages that differ from this interpreter's (host mode):\n{faults}\n"
                "Change the pins or install what they name; --image-check warn runs all the same."
            )
            return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=text)
        return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)

    async def ImageJoinStreaming(
        self, request: api_pb2.ImageJoinStreamingRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.ImageJoinStreamingResponse]:
        """What the build says: first what is left out here, and in host mode the differences that were found."""
        start, _, _ = request.last_entry_id.partition("-")
        seen = int(start or 0)
        if seen == 0:
            lines = "".join(f"{line}\n" for line in self._said(request.image_id))
            if lines:
                yield _logged(lines, 1)
        result = self._result(request.image_id)
        try:
            build = self._build_of(request.image_id)
            if build is not None:
                async for number, line in build.follow(max(seen - 1, 0)):
                    yield _logged(f"{line}\n", number + 1)
                await build.result()
        except EngineError as error:
            failed = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            result = api_pb2.GenericResult(status=failed, exception=str(error))
        yield api_pb2.ImageJoinStreamingResponse(result=result, entry_id="0-1", eof=True)

    def _build_of(self, image_id: str) -> Build | None:
        """The build that was begun for this layer; a new one where nothing is there, and none has been."""
        if self._venvs is None:
            return None
        known = self._builds.get(image_id)
        return (
            known
            if known is not None or self._venvs.is_there(self.plan(image_id))
            else self._venvs.begin(self.plan(image_id))
        )

    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest, _caller: Caller) -> api_pb2.ImageFromIdResponse:
        """Look a layer up by id."""
        if not self._registry.image_layers(request.image_id):
            refuse(Status.NOT_FOUND, f"image {request.image_id} does not exist")
        return api_pb2.ImageFromIdResponse(image_id=request.image_id, metadata=api_pb2.ImageMetadata())

    def prune(self) -> tuple[int, int]:
        """Remove the environments that no function uses: how many, and how many bytes that freed."""
        if self._venvs is None:
            return 0, 0
        live = {app.id for app in self._registry.apps.values() if app.is_live}
        used = {one.definition.image_id for one in self._registry.functions.values() if one.app_id in live}
        return self._venvs.prune(self.plan(one) for one in used if one)


def _digest(layer: api_pb2.Image) -> str:
    """The id of a layer, derived from all that it holds."""
    return f"im-{hashlib.sha256(layer.SerializeToString(deterministic=True)).hexdigest()[:22]}"


def _logged(text: str, number: int) -> api_pb2.ImageJoinStreamingResponse:
    item = api_pb2.TaskLogs(data=text, timestamp=time.time(), file_descriptor=api_pb2.FILE_DESCRIPTOR_INFO)
    return api_pb2.ImageJoinStreamingResponse(task_logs=[item], entry_id=f"{number}-0")
