"""The plain HTTP side door for large bodies: blobs and volume blocks, on loopback.

Each URL is a capability: it names one file and one action, and carries a signature that only this
engine can make: the process, or the successor of one that was killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from gpuserve.engine.durable_files import make_folder, place_file
from gpuserve.exceptions import EngineError

__all__ = ["ObjectServer"]

_NAME = re.compile(r"[A-Za-z0-9-]{1,80}")
_PIECE = 1 << 20
# At 8 MiB each these are 800 GiB that wait to be fetched.
_MOST_RANGES = 100_000


class ObjectServer:
    """Serves ``PUT`` and ``GET`` of objects in one folder, and ranges of other files."""

    def __init__(self, folder: Path, key: bytes, port: int = 0) -> None:
        """Keep objects in *folder*; *key* signs the URLs, at *port* where that is free."""
        self._folder = folder
        make_folder(folder)
        self.key, self.port = key, port
        self._runner: web.AppRunner | None = None
        self._base = ""
        self._ranges: dict[str, tuple[Path, int, int]] = {}

    async def start(self) -> None:
        """Listen on loopback."""
        app = web.Application()
        app.router.add_put("/o/{name}/{signature}", self._put)
        app.router.add_get("/o/{name}/{signature}", self._get)
        app.router.add_get("/r/{name}", self._get_range)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        except OSError:
            # somebody else has the port now, and may have been sent URLs that were meant for us
            self.key = secrets.token_bytes(32)
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        self._base = f"http://127.0.0.1:{self.port}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _sign(self, action: str, name: str) -> str:
        return hmac.new(self.key, f"{action} {name}".encode(), hashlib.sha256).hexdigest()

    def path(self, name: str) -> Path:
        """The file of an object.

        Raises:
            EngineError: If *name* is not one that the engine gave.
        """
        if not _NAME.fullmatch(name):
            raise EngineError(f"{name!r} is not the name of a stored object")
        return self._folder / name

    def put_url(self, name: str) -> str:
        """Where to send one object."""
        return f"{self._base}/o/{name}/{self._sign('PUT', name)}"

    def get_url(self, name: str) -> str:
        """Where to fetch one object."""
        return f"{self._base}/o/{name}/{self._sign('GET', name)}"

    def range_url(self, path: Path, start: int, length: int) -> str:
        """Where to fetch a stretch of a file; good for this process's life, or until many more were asked for."""
        name = secrets.token_hex(32)
        self._ranges[name] = (path, start, length)
        while len(self._ranges) > _MOST_RANGES:
            del self._ranges[next(iter(self._ranges))]
        return f"{self._base}/r/{name}"

    def _checked(self, request: web.Request) -> Path:
        name, signature = request.match_info["name"], request.match_info["signature"]
        if not hmac.compare_digest(signature.encode(), self._sign(request.method, name).encode()):
            raise web.HTTPForbidden
        return self.path(name)

    async def _put(self, request: web.Request) -> web.Response:
        path = self._checked(request)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                async for piece in request.content.iter_chunked(_PIECE):
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            await asyncio.to_thread(place_file, temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        # a volume block is told apart by what its upload answered
        return web.Response(text=path.name, headers={"ETag": f'"{digest.hexdigest()}"'})

    async def _get(self, request: web.Request) -> web.StreamResponse:
        path = self._checked(request)
        if not path.is_file():
            raise web.HTTPNotFound
        return web.FileResponse(path)

    async def _get_range(self, request: web.Request) -> web.StreamResponse:
        known = self._ranges.get(request.match_info["name"])
        if known is None:
            raise web.HTTPForbidden
        path, start, length = known
        response = web.StreamResponse()
        response.content_length = length
        await response.prepare(request)
        async for piece in _pieces(path, start, length):
            await response.write(piece)
        return response


async def _pieces(path: Path, start: int, length: int) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        while length > 0:
            piece = file.read(min(_PIECE, length))
            if not piece:
                return
            length -= len(piece)
            yield piece
