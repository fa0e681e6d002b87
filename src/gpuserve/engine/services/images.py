"""Images: each layer is kept as it was sent; in host mode nothing is built, only compared."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import AsyncIterator
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

__all__ = ["ImageService"]


class ImageService:
    """Image layers by content, and what host mode makes of them."""

    def __init__(self, registry: Registry, mounts: MountService, *, strict: bool) -> None:
        """Refuse differing images where *strict*; else only say so."""
        self._registry, self._mounts, self._strict = registry, mounts, strict
        self._plans: dict[str, ImagePlan] = {}
        self._installed: tuple[tuple[int, ...], dict[str, str]] = ((), {})

    def plan(self, image_id: str) -> ImagePlan:
        """What an image asks for; an id stands for one content."""
        known = self._plans.get(image_id)
        if known is None:
            known = self._plans[image_id] = plan_image(self._registry.image_layers(image_id), self._context)
        return known

    def _context(self, layer: api_pb2.Image) -> LayerContext:
        mount_id = layer.context_mount_id
        found = self._mounts.files([mount_id]) if mount_id else []
        files = {one.path.lstrip("/"): HostFile(one.host, one.mode) for one in found}
        for one in layer.context_files:
            files[one.filename.lstrip("/")] = HostFile(self._mounts.keep_bytes(one.data))
        return LayerContext(self._mounts.name(mount_id) if mount_id else "", files)

    def _judge(self, image_id: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
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
        layer.ClearField("secret_ids")  # they are for the build, which host mode leaves out
        if layer.context_mount_id:
            layer.context_mount_id = self._mounts.keep(layer.context_mount_id)
        image_id = f"im-{hashlib.sha256(layer.SerializeToString(deterministic=True)).hexdigest()[:22]}"
        self._registry.save_image(image_id, layer)
        if self._said(image_id):
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id)  # the client asks for the build's log
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=self._result(image_id), metadata=api_pb2.ImageMetadata()
        )

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
        """What the "build" said: the lines that host mode leaves out, and the differences it found."""
        lines = "".join(f"{line}\n" for line in self._said(request.image_id))
        result = self._result(request.image_id)
        if lines:
            item = api_pb2.TaskLogs(data=lines, timestamp=time.time(), file_descriptor=api_pb2.FILE_DESCRIPTOR_INFO)
            yield api_pb2.ImageJoinStreamingResponse(task_logs=[item], entry_id="1-0")
        yield api_pb2.ImageJoinStreamingResponse(result=result, entry_id="2-0", eof=True)

    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest, _caller: Caller) -> api_pb2.ImageFromIdResponse:
        """Look a layer up by id."""
        if not self._registry.image_layers(request.image_id):
            refuse(Status.NOT_FOUND, f"image {request.image_id} does not exist")
        return api_pb2.ImageFromIdResponse(image_id=request.image_id, metadata=api_pb2.ImageMetadata())
