"""Blobs: values too large for an RPC, uploaded and fetched over HTTP."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.workers.objects_http import ObjectServer
from gpuserve.exceptions import EngineError

__all__ = ["BlobService"]

# All that lies here is on its way: a call's arguments and results, blocks of a file that is being put.
# What is older belonged to a call that is over or to an upload that was given up. Source: our choice,
# one day more than results are kept.
_LIFE_S = 8 * 24 * 3600.0


class BlobService:
    """Both Blob RPCs."""

    def __init__(self, folder: Path, server: ObjectServer) -> None:
        """Blobs lie in *folder*, which *server* serves."""
        self._folder, self._server = folder, server

    async def BlobCreate(self, _request: api_pb2.BlobCreateRequest, _caller: Caller) -> api_pb2.BlobCreateResponse:
        """Say where to send a blob: one request, whatever its size."""
        blob_id = new_id("bl")
        url = self._server.put_url(blob_id)
        return api_pb2.BlobCreateResponse(
            blob_id=blob_id, blob_ids=[blob_id], upload_urls=api_pb2.UploadUrlList(items=[url])
        )

    async def BlobGet(self, request: api_pb2.BlobGetRequest, _caller: Caller) -> api_pb2.BlobGetResponse:
        """Say where to fetch a blob."""
        if not self._server.path(request.blob_id).is_file():
            refuse(Status.NOT_FOUND, f"blob {request.blob_id} does not exist")
        return api_pb2.BlobGetResponse(download_url=self._server.get_url(request.blob_id))

    def drop(self, blob_ids: Iterable[str]) -> None:
        """Free blobs whose call is over; one that is being fetched is fetched to its end."""
        for blob_id in blob_ids:
            # callers name them, and may name what the engine never gave
            with contextlib.suppress(EngineError):
                if blob_id.startswith("bl-"):
                    self._server.path(blob_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Free what was left over, e.g. by an engine that was killed."""
        oldest = time.time() - _LIFE_S
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def read(self, blob_id: str) -> bytes:
        """A blob's bytes, for the ingress."""
        return self.file(blob_id).read_bytes()

    def file(self, blob_id: str) -> Path:
        """Where a blob's bytes lie, once they are here.

        Raises:
            GRPCError: If *blob_id* is no id of a blob.
        """
        try:
            return self._server.path(blob_id)
        except EngineError as error:
            refuse(Status.INVALID_ARGUMENT, str(error))
