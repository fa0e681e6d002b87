"""Requests of ``@app.server``: passed on to the port that its container listens on, websockets as well."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import aiohttp
from aiohttp import web
from yarl import URL

from gpuserve.engine.workers.asgi_bridge import problem
from gpuserve.engine.workers.web_scope import HOP_HEADERS, is_passed_on, target_of
from gpuserve.engine.workers.websocket_bridge import MOST_MESSAGE_BYTES, subprotocols_of
from gpuserve.exceptions import EngineError

__all__ = ["ServerProxy", "Servers"]

_HANDSHAKE = "sec-websocket-"


class Servers(Protocol):
    """What the proxy needs of the engine."""

    def server(self, function_id: str) -> AbstractAsyncContextManager[str]:
        """Wait for a server, and keep it while a request is under way; gives the root of its URLs."""


class ServerProxy:
    """A plain reverse proxy."""

    def __init__(self, servers: Servers) -> None:
        """Keep the collaborator."""
        self._servers = servers
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections to servers."""
        if self._session is not None:
            await self._session.close()

    def _upstream(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        return self._session

    async def handle(self, function_id: str, request: web.BaseRequest, *, websocket: bool) -> web.StreamResponse:
        """Pass one request on, and its answer back."""
        try:
            async with self._servers.server(function_id) as root:
                path, query = target_of(request)
                url = f"{root}{path}{'?' if query else ''}{query}"
                return await (self._websocket if websocket else self._http)(url, request)
        except EngineError as error:
            return problem(503, "unavailable", str(error))

    async def _http(self, url: str, request: web.BaseRequest) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            async with self._upstream().request(
                request.method,
                _as_sent(url),
                headers=_headers(request),
                data=request.content if request.body_exists else None,
                allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            ) as upstream:
                response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
                for name, value in upstream.headers.items():
                    if name.lower() not in HOP_HEADERS:
                        response.headers.add(name, value)
                await response.prepare(request)
                async for piece in upstream.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except aiohttp.ClientError:
            if response is None:
                return problem(502, "bad_gateway", "the server closed the connection before it answered")
            if request.transport is not None:
                request.transport.abort()  # what was sent so far is not the whole
            return response

    async def _websocket(self, url: str, request: web.BaseRequest) -> web.StreamResponse:
        offered = subprotocols_of(request)
        headers = [(name, value) for name, value in _headers(request) if not name.lower().startswith(_HANDSHAKE)]
        try:
            upstream = await self._upstream().ws_connect(
                _as_sent(url), headers=headers, protocols=offered, max_msg_size=MOST_MESSAGE_BYTES, autoping=True
            )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status)
        except aiohttp.ClientError:
            return problem(502, "bad_gateway", "the server closed the connection before it answered")
        chosen = (upstream.protocol,) if upstream.protocol else ()
        socket = web.WebSocketResponse(protocols=chosen, max_msg_size=MOST_MESSAGE_BYTES)
        await socket.prepare(request)
        ways = [asyncio.ensure_future(_pass_on(upstream, socket)), asyncio.ensure_future(_pass_on(socket, upstream))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await upstream.close()
        return socket


def _as_sent(url: str) -> URL:
    return URL(url, encoded=True)


def _headers(request: web.BaseRequest) -> list[tuple[str, str]]:
    headers = request.headers.items()
    return [(name, value) for name, value in headers if name.lower() not in HOP_HEADERS and is_passed_on(name, value)]


async def _pass_on(
    source: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
    target: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)
    code = source.close_code
    await target.close(code=code if code is not None and code != 1006 else 1011)  # noqa: PLR2004 (1006 is never sent)
