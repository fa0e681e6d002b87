"""Mounts: the app's source files, kept once each by their sha256."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.named import NamedObjects
from gpuserve.engine.store import Store
from gpuserve.engine.workers.durable_files import write_durably

__all__ = ["MountService", "MountedFile"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class MountedFile:
    """A file of a mount: its path in the container, and where its bytes lie."""

    path: str
    host: Path
    mode: int


class MountService:
    """All Mount RPCs."""

    def __init__(self, store: Store, folder: Path) -> None:
        """Files lie in *folder*, named by their sha256."""
        self._objects = NamedObjects(store, "mount", "mo")
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, digest: str) -> Path:
        if not _SHA256.fullmatch(digest):
            refuse(Status.INVALID_ARGUMENT, "a file's sha256 must be 64 lower-case hexadecimal digits")
        return self._folder / digest

    def has(self, digest: str) -> bool:
        """Whether a file's bytes are here."""
        return self._path(digest).is_file()

    def host_file(self, digest: str) -> Path:
        """Where a file's bytes lie."""
        return self._path(digest)

    async def MountPutFile(self, request: api_pb2.MountPutFileRequest, _caller: Caller) -> api_pb2.MountPutFileResponse:
        """Take in one file, or say whether it is here."""
        if request.WhichOneof("data_oneof") == "data":
            if hashlib.sha256(request.data).hexdigest() != request.sha256_hex:
                refuse(Status.INVALID_ARGUMENT, f"the bytes sent are not those of sha256 {request.sha256_hex}")
            write_durably(self._path(request.sha256_hex), request.data)
        elif request.data_blob_id:
            refuse(Status.UNIMPLEMENTED, "files of 4 MiB and more in a mount: put them into a volume instead")
        return api_pb2.MountPutFileResponse(exists=self.has(request.sha256_hex))

    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest, _caller: Caller
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        """Which of these files are not here."""
        missing = [digest for digest in request.sha256_hex_hashes if not self.has(digest)]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.MountGetOrCreateResponse:
        """Name a set of files. Modal's own global mounts are empty here: the interpreter has modal."""
        creation = request.object_creation_type
        if request.namespace == api_pb2.DEPLOYMENT_NAMESPACE_GLOBAL:
            creation = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        files = api_pb2.MountGetOrCreateRequest(files=request.files)
        for one in request.files:
            if not self.has(one.sha256_hex):
                refuse(Status.FAILED_PRECONDITION, f"{one.filename} was not uploaded")
        made = self._objects.get_or_create(
            request.deployment_name,
            request.environment_name,
            creation,
            app_id=request.app_id,
            body=files.SerializeToString(),
        )
        digest = hashlib.sha256(files.SerializeToString(deterministic=True)).hexdigest()
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=digest)
        return api_pb2.MountGetOrCreateResponse(mount_id=made.id, handle_metadata=metadata)

    def files(self, mount_ids: Iterable[str]) -> list[MountedFile]:
        """The files of these mounts; a later mount wins."""
        found: dict[str, MountedFile] = {}
        for mount_id in mount_ids:
            body = api_pb2.MountGetOrCreateRequest.FromString(self._objects.get(mount_id).body)
            for one in body.files:
                found[one.filename] = MountedFile(one.filename, self._path(one.sha256_hex), one.mode or 0o644)
        return list(found.values())
