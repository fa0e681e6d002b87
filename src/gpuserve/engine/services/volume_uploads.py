"""Uploads into a volume: blocks first, then the files that are made of them, all or none.

Source:
    modal 1.6.4 sends blocks of 8 MiB, named by the sha256 of their bytes without trailing zeros.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import refuse
from gpuserve.engine.workers.durable_files import place_file
from gpuserve.engine.workers.objects_http import ObjectServer

__all__ = ["VolumeUploads"]

_BLOCK = 8 << 20
_EMPTY = hashlib.sha256(b"").digest()


class VolumeUploads:
    """Joins uploaded blocks to files."""

    def __init__(self, inside: Callable[[str, str], Path], server: ObjectServer) -> None:
        """``inside(volume_id, path)`` gives a contained path; blocks come in through *server*."""
        self._inside, self._server = inside, server

    def put(self, request: api_pb2.VolumePutFiles2Request) -> api_pb2.VolumePutFiles2Response:
        """Make all files, or answer which blocks are still to be sent."""
        targets = [self._inside(request.volume_id, one.path) for one in request.files]
        if request.disallow_overwrite_existing_files:
            taken = [one.path for one, target in zip(request.files, targets, strict=True) if target.exists()]
            if taken:
                refuse(Status.ALREADY_EXISTS, f"{', '.join(taken)}: exists already; use --force to overwrite")
        missing = api_pb2.VolumePutFiles2Response()
        for number, one in enumerate(request.files):
            for place, block in enumerate(one.blocks):
                name = f"block-{block.contents_sha256.hex()}"
                if block.contents_sha256 != _EMPTY and not self._server.path(name).is_file():
                    missing.missing_blocks.add(file_index=number, block_index=place, put_url=self._server.put_url(name))
        if missing.missing_blocks:
            return missing
        for one, target in zip(request.files, targets, strict=True):
            self._join(one, target)
        for one in request.files:
            for block in one.blocks:
                self._server.path(f"block-{block.contents_sha256.hex()}").unlink(missing_ok=True)
        return missing

    def _join(self, one: api_pb2.VolumePutFiles2Request.File, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
        try:
            with temporary.open("wb") as file:
                for place, block in enumerate(one.blocks):
                    if block.contents_sha256 == _EMPTY:
                        continue
                    kept = self._server.path(f"block-{block.contents_sha256.hex()}")
                    data = kept.read_bytes()
                    if hashlib.sha256(data.rstrip(b"\0")).digest() != block.contents_sha256:
                        kept.unlink()  # or it would never be asked for again
                        refuse(Status.INVALID_ARGUMENT, f"{one.path}: block {place} arrived damaged; send it again")
                    file.seek(place * _BLOCK)
                    file.write(data)
                file.truncate(one.size)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(one.mode & 0o777 if one.HasField("mode") else 0o644)
            place_file(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
