"""Requests of ``@app.server``: passed on to the port that its container listens on, websockets as well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from gpuserve.engine.workers.asgi_bridge import problem
from gpuserve.engine.workers.web_scope import HOP_HEADERS, is_passed_on, target_of
from gpuserve.engine.workers.websocket_bridge import MOST_MESSAGE_BYTES, subprotocols_of
from gpuserve.exceptions import EngineError

__all__ = ["Address", "ServerProxy", "Servers"]

_HANDSHAKE = "sec-websocket-"
# How long an unused connection is kept: shorter than any server keeps its own, or a request would be sent into one that
# is being closed. Source: gunicorn's 2 s, the shortest default of those that are in use (uvicorn and hypercorn: 5 s).
_KEEP_ALIVE_S = 1.0
# How often a container is looked for when the one that was found takes no connection. Source: our choice.
_MOST_TRIES = 3
# Answers that have no body, whatever their headers say. Source: RFC 9110, 6.4.1.
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Address:
    """Where one container listens."""

    container: str
    root: str
    lost: Callable[[], None]
    """to be told that nobody answers there any more"""


class Servers(Protocol):
    """What the proxy needs of the engine."""

    def server(self, function_id: str) -> AbstractAsyncContextManager[Address]:
        """Wait for a server, and keep it while a request is under way."""


@dataclass(slots=True)
class _Kept:
    """The connections to one container, and how many requests use them."""

    container: str
    session: aiohttp.ClientSession
    users: int = 0


class ServerProxy:
    """A plain reverse proxy, which keeps its connections to a container for as long as that one is the server's."""

    def __init__(self, servers: Servers) -> None:
        """Keep the collaborator."""
        self._servers = servers
        self._kept: dict[str, _Kept] = {}

    async def close(self) -> None:
        """Close the connections to servers."""
        for kept in self._kept.values():
            await kept.session.close()

    @asynccontextmanager
    async def _connections(self, function_id: str, found: Address) -> AsyncIterator[aiohttp.ClientSession]:
        """The connections to this container; those to the one before end with the requests that use them."""
        kept = self._kept.get(function_id)
        if kept is None or kept.container != found.container:
            before, kept = kept, _Kept(found.container, _session())
            self._kept[function_id] = kept
            if before is not None and not before.users:
                await before.session.close()
        kept.users += 1
        try:
            yield kept.session
        finally:
            kept.users -= 1
            if not kept.users and self._kept.get(function_id) is not kept:
                await kept.session.close()

    async def handle(self, function_id: str, request: web.BaseRequest, *, websocket: bool) -> web.StreamResponse:
        """Pass one request on, and its answer back."""
        path, query = target_of(request)
        target = f"{path}{'?' if query else ''}{query}"
        way = self._websocket if websocket else self._http
        try:
            for _ in range(_MOST_TRIES):
                async with self._servers.server(function_id) as found, self._connections(function_id, found) as session:
                    try:
                        return await way(session, found.root + target, request)
                    except aiohttp.ClientConnectorError:
                        found.lost()  # nothing was sent, so that it may be sent elsewhere
        except EngineError as error:
            return problem(503, "unavailable", str(error))
        return _no_answer()

    async def _http(self, session: aiohttp.ClientSession, url: str, request: web.BaseRequest) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        body: bytes | aiohttp.StreamReader | None = request.content if request.body_exists else None
        if body is not None and request.content.is_eof():
            body = request.content.read_nowait()  # it came with the head, as most do: it goes on in one piece as well
        try:
            async with session.request(
                request.method,
                _as_sent(url),
                headers=_headers(request),
                data=body,
                allow_redirects=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            ) as upstream:
                headers = [(name, value) for name, value in upstream.headers.items() if name.lower() not in HOP_HEADERS]
                if upstream.content.is_eof() and request.method != "HEAD" and upstream.status not in _BODILESS:
                    whole = upstream.content.read_nowait()
                    return web.Response(
                        status=upstream.status, reason=upstream.reason, headers=CIMultiDict(headers), body=whole
                    )
                response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
                response.headers.extend(headers)
                await response.prepare(request)
                async for piece in upstream.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientError:
            if response is None:
                return _no_answer()
            if request.transport is not None:
                request.transport.abort()  # what was sent so far is not the whole
            return response

    async def _websocket(
        self, session: aiohttp.ClientSession, url: str, request: web.BaseRequest
    ) -> web.StreamResponse:
        offered = subprotocols_of(request)
        headers = [(name, value) for name, value in _headers(request) if not name.lower().startswith(_HANDSHAKE)]
        try:
            upstream = await session.ws_connect(
                _as_sent(url), headers=headers, protocols=offered, max_msg_size=MOST_MESSAGE_BYTES, autoping=True
            )
        except aiohttp.WSServerHandshakeError as error:
            return web.Response(status=error.status)
        except aiohttp.ClientConnectorError:
            raise
        except aiohttp.ClientError:
            return _no_answer()
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


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        auto_decompress=False,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _no_answer() -> web.Response:
    return problem(502, "bad_gateway", "the server closed the connection before it answered")


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
