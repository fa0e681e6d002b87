"""Mounts: the app's source files, kept once each by their sha256."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from grpclib import Status

from gpuserve.engine.durable_files import copy_durably, make_folder, place_file, write_durably
from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.named import NamedObjects
from gpuserve.engine.store import Store

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

    def __init__(self, store: Store, folder: Path, blob_file: Callable[[str], Path]) -> None:
        """Files lie in *folder*, named by their sha256; the larger ones come as the files of blobs."""
        self._objects = NamedObjects(store, "mount", "mo")
        self._folder, self._blob_file = folder, blob_file
        make_folder(folder)

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
        elif request.data_blob_id and not self.has(request.sha256_hex):
            await asyncio.to_thread(self._adopt, self._blob_file(request.data_blob_id), request.sha256_hex)
        return api_pb2.MountPutFileResponse(exists=self.has(request.sha256_hex))

    def _adopt(self, blob: Path, digest: str) -> None:
        """Make an uploaded blob's file one of ours; nothing is copied."""
        if not blob.is_file():
            refuse(Status.NOT_FOUND, f"the file with sha256 {digest} was not uploaded")
        with blob.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not hmac.compare_digest(found, digest):
            refuse(Status.INVALID_ARGUMENT, f"the bytes sent are not those of sha256 {digest}")
        blob.chmod(0o644)
        place_file(blob, self._path(digest))

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

    def keep_bytes(self, data: bytes) -> Path:
        """A file with these bytes, for as long as the state folder lives."""
        path = self._path(hashlib.sha256(data).hexdigest())
        if not path.is_file():
            write_durably(path, data)
        return path

    def keep(self, mount_id: str) -> str:
        """The id of a mount with the same files that outlives the app that sent it; named ones do already."""
        one = self._objects.get(mount_id)
        return mount_id if one.name else self._objects.keep_body(one.body)

    def name(self, mount_id: str) -> str:
        """The name that a mount was published under, if it was."""
        return self._objects.get(mount_id).name

    def files(self, mount_ids: Iterable[str]) -> list[MountedFile]:
        """The files of these mounts; a later mount wins."""
        found: dict[str, MountedFile] = {}
        for mount_id in mount_ids:
            body = api_pb2.MountGetOrCreateRequest.FromString(self._objects.get(mount_id).body)
            for one in body.files:
                mode = one.mode & 0o777 or 0o644
                host = self._runnable(one.sha256_hex) if mode & 0o111 else self._path(one.sha256_hex)
                found[one.filename] = MountedFile(one.filename, host, mode)
        return list(found.values())

    def _runnable(self, digest: str) -> Path:
        """A second copy with the bit to be executed: a file that is bound shows the mode that it has here."""
        plain = self._path(digest)
        copy = plain.with_name(f"{digest}.run")
        if not copy.exists():
            copy_durably(plain, copy, 0o755)
        return copy
