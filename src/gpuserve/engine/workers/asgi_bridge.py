"""HTTP requests of ASGI endpoints: the body goes in as chunks, the response comes out as chunks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import web

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.workers.exchange import Exchange, Exchanges
from gpuserve.engine.workers.web_scope import HOP_HEADERS, scope_of, target_of
from gpuserve.exceptions import EngineError

__all__ = ["RESULT_PARAMETER", "AsgiBridge", "problem"]

_PIECE = 1 << 20
# Source: modal.com/docs/guide/webhook-timeouts: after 150 s a redirect to the place of the result.
FIRST_BYTE_S = 150.0
RESULT_PARAMETER = "__modal_function_call_id"
# How long a result that nobody has fetched is kept. Source: our choice.
_UNFETCHED_S = 600.0


@dataclass(slots=True)
class _Parked:
    """An exchange whose client was sent to fetch the answer elsewhere, and its first message."""

    exchange: Exchange
    function_id: str
    first: asyncio.Future[api_pb2.Asgi | None]


class AsgiBridge:
    """Turns requests into calls and chunks into responses."""

    def __init__(self, exchanges: Exchanges) -> None:
        """Keep the collaborators."""
        self._exchanges = exchanges
        self._parked: dict[str, _Parked] = {}
        self.first_byte_s = FIRST_BYTE_S

    async def handle(self, function_id: str, method_name: str, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of an ASGI endpoint."""
        parked = self._parked.pop(request.query.get(RESULT_PARAMETER, ""), None)
        if parked is not None and parked.function_id == function_id:
            return await self._answer(parked.exchange, function_id, request, parked.first, None)
        try:
            exchange = await self._exchanges.begin(function_id, method_name, scope_of(request, "http"))
        except EngineError as error:
            return problem(503, "unavailable", str(error))
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = asyncio.ensure_future(_send_body(exchange, request))
        first = asyncio.ensure_future(_next(exchange))
        return await self._answer(exchange, function_id, request, first, body)

    async def _answer(
        self,
        exchange: Exchange,
        function_id: str,
        request: web.BaseRequest,
        first: asyncio.Future[api_pb2.Asgi | None],
        body: asyncio.Future[None] | None,
    ) -> web.StreamResponse:
        kept = False
        whole = False
        try:
            await asyncio.wait([first], timeout=self.first_byte_s)
            if not first.done() and (body is None or body.done()):
                kept = True
                return self._park(_Parked(exchange, function_id, first), request)
            response = await _respond(exchange, request, await first)
            whole = True
            return response
        finally:
            if body is not None:
                body.cancel()
            if not kept:
                ended = exchange.finish() if whole else exchange.leave(http_disconnect=api_pb2.Asgi.HttpDisconnect())
                self._exchanges.see_to(ended)

    def _park(self, parked: _Parked, request: web.BaseRequest) -> web.Response:
        """Send the client to the place where it can wait on."""
        call_id = parked.exchange.call_id
        self._parked[call_id] = parked
        asyncio.get_running_loop().call_later(_UNFETCHED_S, self._give_up, call_id)
        path, query = target_of(request)
        rest = "&".join(part for part in query.split("&") if part and not part.startswith(f"{RESULT_PARAMETER}="))
        place = f"{path}?{rest}{'&' if rest else ''}{RESULT_PARAMETER}={call_id}"
        return web.Response(status=303, headers={"Location": place})

    def _give_up(self, call_id: str) -> None:
        parked = self._parked.pop(call_id, None)
        if parked is not None:
            self._exchanges.see_to(parked.exchange.leave(http_disconnect=api_pb2.Asgi.HttpDisconnect()))


async def _send_body(exchange: Exchange, request: web.BaseRequest) -> None:
    try:
        async for piece in request.content.iter_chunked(_PIECE):
            await exchange.say(http_request=api_pb2.Asgi.HttpRequest(body=piece, more_body=True))
        # always one more, also for an empty body: the container waits 5 s for its first message
        await exchange.say(http_request=api_pb2.Asgi.HttpRequest(body=b"", more_body=False))
    except (web.RequestPayloadError, ConnectionError):
        await exchange.say(http_disconnect=api_pb2.Asgi.HttpDisconnect())  # the body will never be whole


async def _next(exchange: Exchange) -> api_pb2.Asgi | None:
    return await anext(exchange.messages, None)


async def _respond(exchange: Exchange, request: web.BaseRequest, first: api_pb2.Asgi | None) -> web.StreamResponse:
    if first is None or not first.HasField("http_response_start"):
        failed = await exchange.failed()
        return problem(500 if failed else 502, "failed", "the endpoint failed before it answered")
    start = first.http_response_start
    response = web.StreamResponse(status=start.status)
    for name, value in zip(start.headers[0::2], start.headers[1::2], strict=True):
        if name.lower() == b"content-length":
            response.content_length = int(value)
        elif name.decode("latin-1").lower() not in HOP_HEADERS:
            response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    await response.prepare(request)
    async for message in exchange.messages:
        part = message.http_response_body
        if part.body and request.method != "HEAD":
            await response.write(part.body)
        if not part.more_body:
            await response.write_eof()
            return response
    # the app failed midway: a cut connection says so, an ended one would look whole
    if request.transport is not None:
        request.transport.abort()
    return response


def problem(status: int, code: str, message: str) -> web.Response:
    """An answer of the engine's own."""
    return web.json_response({"error": {"type": "engine_error", "code": code, "message": message}}, status=status)
