"""What is put into a volume: uploaded blocks made into files, and copies; all files of one request, or none.

Source:
    modal 1.6.4 sends blocks of 8 MiB, named by the sha256 of their bytes without trailing zeros.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from grpclib import Status

from gpuserve.engine.durable_files import remove
from gpuserve.engine.file_steps import FileSteps
from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.workers.objects_http import ObjectServer

__all__ = ["VolumeUploads"]

_BLOCK = 8 << 20
_EMPTY = hashlib.sha256(b"").digest()
Write = Callable[[Path], None]


class VolumeUploads:
    """Prepares files beside the volume, and puts them into it in one step."""

    def __init__(
        self,
        inside: Callable[[str, str], Path],
        server: ObjectServer,
        steps: FileSteps,
        mounted: Callable[[str], Path],
    ) -> None:
        """``inside(volume_id, path)`` gives a contained path; blocks come in through *server*, and whole
        files are those that ``mounted(sha256)`` names.
        """
        self._inside, self._server, self._steps, self._mounted = inside, server, steps, mounted

    async def put(self, request: api_pb2.VolumePutFiles2Request, caller: Caller) -> api_pb2.VolumePutFiles2Response:
        """Make all files, or answer which blocks are still to be sent.

        The second answer is not kept for a retry: a restarted engine asks anew, at its own address.
        """
        paths, fresh = [one.path for one in request.files], request.disallow_overwrite_existing_files
        self._targets(request.volume_id, paths, fresh=fresh)
        missing = self._missing(request)
        if missing.missing_blocks:
            return missing
        staged = await self._stage([self._writer(one) for one in request.files])

        def place() -> api_pb2.VolumePutFiles2Response:
            self.place(staged, self._targets(request.volume_id, paths, fresh=fresh))
            return api_pb2.VolumePutFiles2Response()

        done: api_pb2.VolumePutFiles2Response = caller.durably(place)
        for one in request.files:
            for block in one.blocks:
                self._block(block).unlink(missing_ok=True)
        return done

    async def put_whole(self, request: api_pb2.VolumePutFilesRequest, caller: Caller) -> Empty:
        """Make all files out of ones that were sent whole."""
        names, fresh = [one.filename for one in request.files], request.disallow_overwrite_existing_files
        self._targets(request.volume_id, names, fresh=fresh)
        missing = [one.filename for one in request.files if not self._mounted(one.sha256_hex).is_file()]
        if missing:
            refuse(Status.FAILED_PRECONDITION, f"{', '.join(missing)}: not uploaded")
        staged = await self._stage([_copier(self._mounted(one.sha256_hex), one.mode) for one in request.files])

        def place() -> Empty:
            self.place(staged, self._targets(request.volume_id, names, fresh=fresh))
            return Empty()

        done: Empty = caller.durably(place)
        return done

    async def copies(self, sources: Sequence[Path]) -> list[Path]:
        """Prepare a copy of each of *sources*, files and empty folders; `place` puts them in."""
        return await self._stage([_copier(source) for source in sources])

    def place(self, staged: Sequence[Path], targets: Sequence[Path]) -> None:
        """Put prepared files in, when the present transaction commits; refused where one cannot lie."""
        try:
            for path, target in zip(staged, targets, strict=True):
                _check_room(target, is_folder=path.is_dir())
                self._steps.place(path, target)
        except BaseException:
            _drop(staged)
            raise

    def _targets(self, volume_id: str, paths: Sequence[str], *, fresh: bool) -> list[Path]:
        targets = [self._inside(volume_id, path) for path in paths]
        taken = [path for path, target in zip(paths, targets, strict=True) if fresh and target.exists()]
        if taken:
            refuse(Status.ALREADY_EXISTS, f"{', '.join(taken)}: exists already; use --force to overwrite")
        return targets

    def _block(self, block: api_pb2.VolumePutFiles2Request.Block) -> Path:
        return self._server.path(f"block-{block.contents_sha256.hex()}")

    def _missing(self, request: api_pb2.VolumePutFiles2Request) -> api_pb2.VolumePutFiles2Response:
        missing = api_pb2.VolumePutFiles2Response()
        for number, one in enumerate(request.files):
            for place, block in enumerate(one.blocks):
                kept = self._block(block)
                if block.contents_sha256 != _EMPTY and not kept.is_file():
                    url = self._server.put_url(kept.name)
                    missing.missing_blocks.add(file_index=number, block_index=place, put_url=url)
        return missing

    async def _stage(self, writers: Sequence[Write]) -> list[Path]:
        staged = [self._steps.stage() for _ in writers]

        def write() -> None:
            try:
                for writer, path in zip(writers, staged, strict=True):
                    writer(path)
            except BaseException:
                _drop(staged)
                raise

        work = asyncio.ensure_future(asyncio.to_thread(write))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda _done: _drop(staged))  # the thread cannot be broken off
            raise
        return staged

    def _writer(self, one: api_pb2.VolumePutFiles2Request.File) -> Write:
        def write(path: Path) -> None:
            with path.open("xb") as file:
                for place, block in enumerate(one.blocks):
                    if block.contents_sha256 == _EMPTY:
                        continue
                    kept = self._block(block)
                    data = kept.read_bytes()
                    if hashlib.sha256(data.rstrip(b"\0")).digest() != block.contents_sha256:
                        kept.unlink()  # or it would never be asked for again
                        refuse(Status.INVALID_ARGUMENT, f"{one.path}: block {place} arrived damaged; send it again")
                    file.seek(place * _BLOCK)
                    file.write(data)
                file.truncate(one.size)
                os.fchmod(file.fileno(), one.mode & 0o777 or 0o644)
                file.flush()
                os.fsync(file.fileno())

        return write


def _copier(source: Path, mode: int | None = None) -> Write:
    def write(path: Path) -> None:
        if source.is_dir():
            path.mkdir()
            return
        if mode is None:
            shutil.copy2(source, path)
        else:
            shutil.copyfile(source, path)
            path.chmod(mode & 0o777 or 0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    return write


def _check_room(target: Path, *, is_folder: bool) -> None:
    if target.is_dir() and not is_folder:
        refuse(Status.INVALID_ARGUMENT, f"{target.name}: a directory of that name exists in this volume")
    above = target.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        refuse(Status.INVALID_ARGUMENT, f"{above.name} is a file in this volume: nothing can lie below it")


def _drop(staged: Sequence[Path]) -> None:
    for path in staged:
        remove(path)
