"""Images: each layer is kept as it was sent; in host mode nothing is built, only compared."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.registry import Registry

__all__ = ["ImageService"]


class ImageService:
    """Image layers by content. ``judge(layers)`` returns what is wrong, and notes for the log."""

    def __init__(
        self,
        registry: Registry,
        judge: Callable[[list[api_pb2.Image]], tuple[tuple[str, ...], tuple[str, ...]]],
        *,
        strict: bool,
    ) -> None:
        """Refuse differing images where *strict*; else only say so."""
        self._registry, self._judge, self._strict = registry, judge, strict

    def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.ImageGetOrCreateResponse:
        """Take in one layer; its id is derived from all that it holds."""
        digest = hashlib.sha256(request.image.SerializeToString(deterministic=True)).hexdigest()[:22]
        image_id = f"im-{digest}"
        self._registry.save_image(image_id, request.image)
        if self._said(image_id):
            return api_pb2.ImageGetOrCreateResponse(image_id=image_id)  # the client asks for the build's log
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=self._result(image_id), metadata=api_pb2.ImageMetadata()
        )

    def _said(self, image_id: str) -> tuple[str, ...]:
        """What there is to say of this layer, and was not said of those below."""
        layers = self._registry.image_layers(image_id)
        problems, notes = self._judge(layers)
        problems_below, notes_below = self._judge(layers[:-1]) if len(layers) > 1 else ((), ())
        return tuple(line for line in (*notes, *problems) if line not in {*notes_below, *problems_below})

    def _result(self, image_id: str) -> api_pb2.GenericResult:
        problems, _notes = self._judge(self._registry.image_layers(image_id))
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
