"""One HTTP request as a call: the body goes in as chunks, the response comes out as chunks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import aiohttp
import cbor2
from aiohttp import web

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.streams import Streams
from gpuserve.exceptions import EngineError

__all__ = ["AsgiBridge", "WebCalls"]

# Source: Modal ends its own wait after 150 s (with a redirect to a page for the result).
_FIRST_BYTE_S = 150.0
_PIECE = 1 << 20
_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}
_DROPPED = {"modal-key", "modal-secret", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"}


class WebCalls(Protocol):
    """What the ingress needs of the engine."""

    async def start(self, function_id: str, method_name: str, args: bytes) -> str:
        """Queue one request; return its call's id."""

    async def result(self, function_call_id: str) -> api_pb2.GenericResult:
        """Wait for the call's result."""

    def cancel(self, function_call_id: str) -> None:
        """Nobody waits any more."""

    async def server_address(self, function_id: str) -> tuple[str, int]:
        """Wait for a server's port."""


class AsgiBridge:
    """Turns requests into calls and chunks into responses."""

    def __init__(self, web_calls: WebCalls, streams: Streams, read_blob: Callable[[str], bytes]) -> None:
        """Keep the collaborators."""
        self._calls, self._streams, self._read_blob = web_calls, streams, read_blob
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections to servers."""
        if self._session is not None:
            await self._session.close()

    async def handle(self, function_id: str, method_name: str, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of an ASGI endpoint."""
        scope = _scope(request)
        try:
            call_id = await self._calls.start(function_id, method_name, cbor2.dumps([[scope], {}]))
        except EngineError as error:
            return _problem(503, "unavailable", str(error))
        result = asyncio.ensure_future(self._calls.result(call_id))
        body = asyncio.ensure_future(self._send_body(call_id, request))
        try:
            return await self._respond(call_id, request, result)
        except (asyncio.CancelledError, ConnectionError):
            gone = api_pb2.Asgi(http_disconnect=api_pb2.Asgi.HttpDisconnect())
            self._put_in(call_id, gone)
            self._calls.cancel(call_id)
            raise
        finally:
            body.cancel()
            if not result.done():
                self._calls.cancel(call_id)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([result, body], timeout=5)
            self._streams.drop(call_id)

    def _put_in(self, call_id: str, message: api_pb2.Asgi) -> None:
        chunk = api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=message.SerializeToString())
        self._streams.data_in(call_id).put(chunk)

    async def _send_body(self, call_id: str, request: web.BaseRequest) -> None:
        async for piece in request.content.iter_chunked(_PIECE):
            self._put_in(call_id, api_pb2.Asgi(http_request=api_pb2.Asgi.HttpRequest(body=piece, more_body=True)))
            await self._streams.data_in(call_id).drained()
        # always one more, also for an empty body: the container waits 5 s for its first message
        self._put_in(call_id, api_pb2.Asgi(http_request=api_pb2.Asgi.HttpRequest(body=b"", more_body=False)))

    async def _messages(self, call_id: str) -> AsyncIterator[api_pb2.Asgi]:
        async for chunk in self._streams.data_out(call_id).read(0):
            data = self._read_blob(chunk.data_blob_id) if chunk.data_blob_id else chunk.data
            yield api_pb2.Asgi.FromString(data)

    async def _respond(
        self, call_id: str, request: web.BaseRequest, result: asyncio.Future[api_pb2.GenericResult]
    ) -> web.StreamResponse:
        messages = self._messages(call_id)
        try:
            async with asyncio.timeout(_FIRST_BYTE_S):
                first = await anext(messages, None)
        except TimeoutError:
            return _problem(504, "timeout", f"no answer within {_FIRST_BYTE_S:.0f} s")
        if first is None or not first.HasField("http_response_start"):
            ended = await result
            failed = ended.status != api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
            return _problem(500 if failed else 502, "failed", "the endpoint failed before it answered")
        start = first.http_response_start
        response = web.StreamResponse(status=start.status)
        names = [bytes(one).decode("latin-1") for one in start.headers[0::2]]
        values = [bytes(one).decode("latin-1") for one in start.headers[1::2]]
        for name, value in zip(names, values, strict=True):
            if name.lower() == "content-length":
                response.content_length = int(value)
            elif name.lower() not in _HOP:
                response.headers.add(name, value)
        await response.prepare(request)
        async for message in messages:
            part = message.http_response_body
            if part.body:
                await response.write(part.body)
            if not part.more_body:
                await response.write_eof()
                return response
        # the app failed midway: a cut connection says so, an ended one would look whole
        if request.transport is not None:
            request.transport.abort()
        return response

    async def proxy(self, function_id: str, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on to an ``@app.server`` container's own port."""
        try:
            host, port = await self._calls.server_address(function_id)
        except EngineError as error:
            return _problem(503, "unavailable", str(error))
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP | _DROPPED]
        try:
            async with self._session.request(
                request.method,
                f"http://{host}:{port}{request.rel_url}",
                headers=headers,
                data=request.content if request.body_exists else None,
                allow_redirects=False,
            ) as upstream:
                response = web.StreamResponse(status=upstream.status)
                for name, value in upstream.headers.items():
                    if name.lower() not in _HOP:
                        response.headers.add(name, value)
                await response.prepare(request)
                async for piece in upstream.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except aiohttp.ClientError:
            return _problem(502, "bad_gateway", "the server closed the connection")


def _scope(request: web.BaseRequest) -> dict[str, Any]:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    headers = [
        [name.lower(), value] for name, value in request.raw_headers if name.decode("latin-1").lower() not in _DROPPED
    ]
    return {
        "type": "http",
        "http_version": f"{request.version.major}.{request.version.minor}",
        "method": request.method,
        "scheme": "http",
        "path": request.rel_url.path,
        "query_string": request.rel_url.raw_query_string.encode("latin-1"),
        "headers": headers,
        "client": list(peer[:2]) if peer else None,
        "extensions": {"http.response.trailers": {}},
    }


def _problem(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"type": "engine_error", "code": code, "message": message}}, status=status)
