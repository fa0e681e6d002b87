"""Volumes: one plain directory each, read and written by clients and mounted into containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from grpclib import Status

from gpuserve.engine.durable_files import make_folder, sync_volume
from gpuserve.engine.file_steps import FileSteps
from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.named import NamedObject, NamedObjects
from gpuserve.engine.services.volume_uploads import VolumeUploads
from gpuserve.engine.store import Store
from gpuserve.engine.workers.objects_http import ObjectServer

__all__ = ["VolumeService"]

_BLOCK = 8 << 20
_PAGE = 1000
_V1, _V2 = api_pb2.VOLUME_FS_VERSION_V1, api_pb2.VOLUME_FS_VERSION_V2


class VolumeService:
    """The Volume RPCs of both forms; new volumes are of the second unless asked otherwise."""

    def __init__(self, store: Store, folder: Path, server: ObjectServer, mounted: Callable[[str], Path]) -> None:
        """Each volume lies in a folder of its own under *folder*; ``mounted(sha256)`` is a file that was sent."""
        self._objects = NamedObjects(store, "volume", "vo")
        self._folder, self._server = folder, server
        self._steps = FileSteps(store, folder)
        self._uploads = VolumeUploads(self.inside, server, self._steps, mounted)

    def host_folder(self, volume_id: str) -> Path:
        """Where a volume's files lie."""
        self._objects.get(volume_id)
        folder = self._folder / volume_id
        make_folder(folder, 0o755)
        return folder

    def inside(self, volume_id: str, path: str, *, follow: bool = True) -> Path:
        """A path of a volume on the host; refused when it leads out of it, links included.

        Without *follow*, a link at the path itself is meant, and not what it points to.
        """
        root = self.host_folder(volume_id).resolve()
        asked = root / path.lstrip("/")
        found = asked.resolve() if follow or asked.name in {"", ".."} else asked.parent.resolve() / asked.name
        if not found.is_relative_to(root):
            refuse(Status.INVALID_ARGUMENT, f"the path {path!r} leads out of the volume")
        return found

    def metadata(self, volume_id: str) -> api_pb2.VolumeMetadata:
        """What a handle of a volume says of it."""
        return self._metadata(self._objects.get(volume_id))

    def _metadata(self, one: NamedObject) -> api_pb2.VolumeMetadata:
        version = _V1 if one.body == b"1" else _V2
        return api_pb2.VolumeMetadata(version=version, name=one.name, creation_info=one.creation_info)

    def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest, _caller: Caller
    ) -> api_pb2.VolumeGetOrCreateResponse:
        """Find or create a volume."""
        one = self._objects.get_or_create(
            request.deployment_name,
            request.environment_name,
            request.object_creation_type,
            app_id=request.app_id,
            body=b"1" if request.version == _V1 else b"2",
        )
        self.host_folder(one.id)
        metadata = self._metadata(one)
        return api_pb2.VolumeGetOrCreateResponse(volume_id=one.id, version=metadata.version, metadata=metadata)

    async def VolumeGetById(
        self, request: api_pb2.VolumeGetByIdRequest, _caller: Caller
    ) -> api_pb2.VolumeGetByIdResponse:
        """Look a volume up by id."""
        one = self._objects.get(request.volume_id)
        return api_pb2.VolumeGetByIdResponse(volume_id=one.id, metadata=self._metadata(one))

    async def VolumeList(self, request: api_pb2.VolumeListRequest, _caller: Caller) -> api_pb2.VolumeListResponse:
        """Named volumes, newest first."""
        items = [
            api_pb2.VolumeListItem(
                label=one.name, volume_id=one.id, created_at=one.created_at, metadata=self._metadata(one)
            )
            for one in self._objects.list(request.environment_name, request.pagination)
        ]
        return api_pb2.VolumeListResponse(items=items, environment_name=request.environment_name)

    def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest, _caller: Caller) -> Empty:
        """Delete a volume with its files."""
        self._drop(request.volume_id)
        return Empty()

    def _drop(self, volume_id: str) -> None:
        folder = self.host_folder(volume_id)
        self._objects.delete(volume_id)
        self._steps.discard(folder.resolve())

    def release(self, app_id: str) -> None:
        """Delete the nameless volumes of an app, in the present transaction."""
        for volume_id in self._objects.owned_by(app_id):
            self._drop(volume_id)

    def expire(self) -> None:
        """Delete the ephemeral volumes whose clients are gone, in the present transaction."""
        for volume_id in self._objects.unused():
            self._drop(volume_id)

    def VolumeRename(self, request: api_pb2.VolumeRenameRequest, _caller: Caller) -> Empty:
        """Give a volume another name."""
        self._objects.rename(request.volume_id, request.name)
        return Empty()

    async def VolumeHeartbeat(self, request: api_pb2.VolumeHeartbeatRequest, _caller: Caller) -> Empty:
        """An ephemeral volume is in use."""
        self._objects.touch(request.volume_id)
        return Empty()

    async def VolumeCommit(self, request: api_pb2.VolumeCommitRequest, _caller: Caller) -> api_pb2.VolumeCommitResponse:
        """Make every write durable; other containers see them already."""
        await asyncio.to_thread(sync_volume, self.host_folder(request.volume_id))
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest, _caller: Caller) -> Empty:
        """Nothing to do: what was written is seen at once."""
        self.host_folder(request.volume_id)
        return Empty()

    def _entries(self, volume_id: str, path: str, *, recursive: bool) -> list[api_pb2.FileEntry]:
        root, start = self.host_folder(volume_id).resolve(), self.inside(volume_id, path)
        if not start.exists():
            refuse(Status.NOT_FOUND, f"{path} does not exist in this volume")
        if not start.is_dir():
            return [_entry(root, start)]
        found = start.rglob("*") if recursive else start.iterdir()
        return [_entry(root, one) for one in sorted(found)]

    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFilesResponse]:
        """The files under a path."""
        entries = self._entries(request.volume_id, request.path, recursive=request.recursive)
        for some in _pages(entries[: request.max_entries or None]):
            yield api_pb2.VolumeListFilesResponse(entries=some)

    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request, _caller: Caller
    ) -> AsyncIterator[api_pb2.VolumeListFiles2Response]:
        """The files under a path."""
        entries = self._entries(request.volume_id, request.path, recursive=request.recursive)
        for some in _pages(entries[: request.max_entries or None]):
            yield api_pb2.VolumeListFiles2Response(entries=some)

    async def VolumeGetFile2(
        self, request: api_pb2.VolumeGetFile2Request, _caller: Caller
    ) -> api_pb2.VolumeGetFile2Response:
        """Where to fetch a file, a block of 8 MiB at a time."""
        path = self.inside(request.volume_id, request.path)
        if not path.is_file():
            refuse(Status.NOT_FOUND, f"{request.path} does not exist in this volume, or is a directory")
        size = path.stat().st_size
        start = min(request.start, size)
        end = min(size, start + request.len) if request.len else size
        urls: list[str] = []
        at = start
        while at < end:
            stop = min(end, (at // _BLOCK + 1) * _BLOCK)
            urls.append(self._server.range_url(path, at, stop - at))
            at = stop
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=size, start=start, len=end - start)

    def VolumeRemoveFile2(self, request: api_pb2.VolumeRemoveFile2Request, _caller: Caller) -> Empty:
        """Remove a file, or a directory with all in it."""
        path = self.inside(request.volume_id, request.path, follow=False)
        if not path.exists() and not path.is_symlink():
            refuse(Status.NOT_FOUND, f"{request.path} does not exist in this volume")
        is_root = path == self.host_folder(request.volume_id).resolve()
        if _is_folder(path) and not request.recursive:
            refuse(Status.INVALID_ARGUMENT, f"{request.path} is a directory: remove it recursively")
        for one in path.iterdir() if is_root else [path]:  # the volume itself is mounted, and stays
            self._steps.discard(one)
        return Empty()

    def VolumeRemoveFile(self, request: api_pb2.VolumeRemoveFileRequest, caller: Caller) -> Empty:
        """The same for volumes of the first form."""
        same = api_pb2.VolumeRemoveFile2Request.FromString(request.SerializeToString())
        return self.VolumeRemoveFile2(same, caller)

    async def VolumeCopyFiles2(self, request: api_pb2.VolumeCopyFiles2Request, caller: Caller) -> Empty:
        """Copy files as ``cp`` does, all or none."""
        found = self._copies(request)
        staged = await self._uploads.copies([source for source, _target in found])

        def place() -> Empty:
            self._uploads.place(staged, [target for _source, target in found])
            return Empty()

        done: Empty = caller.durably(place)
        return done

    def _copies(self, request: api_pb2.VolumeCopyFiles2Request) -> list[tuple[Path, Path]]:
        """Each file to be copied, and where to."""
        target = self.inside(request.volume_id, request.dst_path)
        many = len(request.src_paths) > 1 or request.dst_path.endswith("/")
        found: list[tuple[Path, Path]] = []
        for name in request.src_paths:
            source = self.inside(request.volume_id, name)
            if not source.exists():
                refuse(Status.NOT_FOUND, f"{name} does not exist in this volume")
            place = target / source.name if many or target.is_dir() else target
            if not source.is_dir():
                found.append((source, place))
                continue
            if not request.recursive:
                refuse(Status.INVALID_ARGUMENT, f"{name} is a directory: copy it recursively")
            leaves = [one for one in (source, *source.rglob("*")) if _is_leaf(one)]
            found += [(one, place / one.relative_to(source)) for one in leaves]
        return found

    async def VolumeCopyFiles(self, request: api_pb2.VolumeCopyFilesRequest, caller: Caller) -> Empty:
        """The same for volumes of the first form."""
        same = api_pb2.VolumeCopyFiles2Request.FromString(request.SerializeToString())
        return await self.VolumeCopyFiles2(same, caller)

    async def VolumePutFiles2(
        self, request: api_pb2.VolumePutFiles2Request, caller: Caller
    ) -> api_pb2.VolumePutFiles2Response:
        """Put files together from uploaded blocks, or say which blocks are missing."""
        return await self._uploads.put(request, caller)

    async def VolumePutFiles(self, request: api_pb2.VolumePutFilesRequest, caller: Caller) -> Empty:
        """Place files that were sent whole; volumes of the first form are written so."""
        return await self._uploads.put_whole(request, caller)


def _is_leaf(path: Path) -> bool:
    """Whether all of a tree is copied when this is: a file, or a folder that has nothing in it."""
    return path.is_file() or (path.is_dir() and not any(path.iterdir()))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _pages(entries: list[api_pb2.FileEntry]) -> list[list[api_pb2.FileEntry]]:
    return [entries[at : at + _PAGE] for at in range(0, len(entries), _PAGE)]


def _entry(root: Path, path: Path) -> api_pb2.FileEntry:
    about = path.lstat()
    kinds = api_pb2.FileEntry.FileType
    kind = kinds.SYMLINK if path.is_symlink() else kinds.DIRECTORY if path.is_dir() else kinds.FILE
    return api_pb2.FileEntry(path=str(path.relative_to(root)), type=kind, mtime=int(about.st_mtime), size=about.st_size)
