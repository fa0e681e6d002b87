"""Uploads into a volume: blocks first, then the files that are made of them, all or none.

Source:
    modal 1.6.4 sends blocks of 8 MiB, named by the sha256 of their bytes without trailing zeros.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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

    def __init__(
        self,
        inside: Callable[[str, str], Path],
        incoming: Path,
        server: ObjectServer,
        mounted: Callable[[str], Path],
    ) -> None:
        """Put files together in *incoming*, which lies on the volumes' disk and in none of them.

        ``inside(volume_id, path)`` gives a contained path; blocks come in through *server*, and whole
        files are those that ``mounted(sha256)`` names.
        """
        self._inside, self._incoming, self._server, self._mounted = inside, incoming, server, mounted

    def put(self, request: api_pb2.VolumePutFiles2Request) -> api_pb2.VolumePutFiles2Response:
        """Make all files, or answer which blocks are still to be sent."""
        targets = self._targets(
            request.volume_id, [one.path for one in request.files], fresh=request.disallow_overwrite_existing_files
        )
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

    def put_whole(self, request: api_pb2.VolumePutFilesRequest) -> None:
        """Make all files out of ones that were sent whole."""
        names = [one.filename for one in request.files]
        targets = self._targets(request.volume_id, names, fresh=request.disallow_overwrite_existing_files)
        missing = [one.filename for one in request.files if not self._mounted(one.sha256_hex).is_file()]
        if missing:
            refuse(Status.FAILED_PRECONDITION, f"{', '.join(missing)}: not uploaded")
        for one, target in zip(request.files, targets, strict=True):
            with self._placing(target, one.mode) as file, self._mounted(one.sha256_hex).open("rb") as source:
                shutil.copyfileobj(source, file, _BLOCK)

    def _targets(self, volume_id: str, paths: list[str], *, fresh: bool) -> list[Path]:
        targets = [self._inside(volume_id, path) for path in paths]
        taken = [path for path, target in zip(paths, targets, strict=True) if fresh and target.exists()]
        if taken:
            refuse(Status.ALREADY_EXISTS, f"{', '.join(taken)}: exists already; use --force to overwrite")
        folders = [path for path, target in zip(paths, targets, strict=True) if target.is_dir()]
        if folders:
            refuse(Status.INVALID_ARGUMENT, f"{', '.join(folders)}: a directory of that name exists")
        return targets

    @contextmanager
    def _placing(self, target: Path, mode: int) -> Iterator[BinaryIO]:
        """A file to write that takes *target*'s name, whole and durable, when it is closed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._incoming / secrets.token_hex(12)
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode & 0o777 or 0o644)
            place_file(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _join(self, one: api_pb2.VolumePutFiles2Request.File, target: Path) -> None:
        with self._placing(target, one.mode) as file:
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
