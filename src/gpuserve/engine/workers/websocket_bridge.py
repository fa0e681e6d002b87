"""Websockets of ASGI endpoints: the same two streams as a request's, open as long as the connection."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.workers.asgi_bridge import FIRST_BYTE_S, problem
from gpuserve.engine.workers.exchange import Exchange, Exchanges
from gpuserve.engine.workers.web_scope import HOP_HEADERS, scope_of
from gpuserve.exceptions import EngineError

__all__ = ["MOST_MESSAGE_BYTES", "WebsocketBridge", "subprotocols_of"]

# Source: uvicorn's own limit for one message, which apps are written with.
MOST_MESSAGE_BYTES = 16 << 20
# Codes of RFC 6455, 7.4.1.
_GOING_NORMALLY, _GONE, _FAILED = 1000, 1006, 1011


def subprotocols_of(request: web.BaseRequest) -> list[str]:
    """The subprotocols that a client offers, the one it likes best first."""
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", []))
    return [one.strip() for one in offered.split(",") if one.strip()]


class WebsocketBridge:
    """Turns a websocket into a call's two streams."""

    def __init__(self, exchanges: Exchanges) -> None:
        """Keep the collaborators."""
        self._exchanges = exchanges

    async def handle(self, function_id: str, method_name: str, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one websocket's handshake, and serve it to its end."""
        scope = scope_of(request, "websocket") | {"subprotocols": subprotocols_of(request)}
        try:
            exchange = await self._exchanges.begin(function_id, method_name, scope)
        except EngineError as error:
            return problem(503, "unavailable", str(error))
        code = _GONE
        try:
            await exchange.say(websocket_connect=api_pb2.Asgi.WebsocketConnect())
            try:
                async with asyncio.timeout(FIRST_BYTE_S):
                    first = await anext(exchange.messages, None)
            except TimeoutError:
                return problem(504, "timeout", f"no answer to the handshake within {FIRST_BYTE_S:.0f} s")
            if first is None:
                return problem(500, "failed", "the endpoint failed before it accepted the connection")
            if not first.HasField("websocket_accept"):
                return web.Response(status=403)  # closed before it was accepted
            socket = await _accept(request, first.websocket_accept)
            code = await _serve(exchange, socket)
            return socket
        finally:
            self._exchanges.see_to(exchange.leave(websocket_disconnect=api_pb2.Asgi.WebsocketDisconnect(code=code)))


async def _accept(request: web.BaseRequest, accept: api_pb2.Asgi.WebsocketAccept) -> web.WebSocketResponse:
    protocols = (accept.subprotocol,) if accept.subprotocol else ()
    socket = web.WebSocketResponse(protocols=protocols, max_msg_size=MOST_MESSAGE_BYTES)
    for name, value in zip(accept.headers[0::2], accept.headers[1::2], strict=True):
        if name.decode("latin-1").lower() not in HOP_HEADERS:
            socket.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    await socket.prepare(request)
    return socket


async def _serve(exchange: Exchange, socket: web.WebSocketResponse) -> int:
    """Pass messages both ways until one side closes; return the code that the client closed with."""
    to_client = asyncio.ensure_future(_to_client(exchange, socket))
    try:
        async for message in socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                await exchange.say(websocket_receive=api_pb2.Asgi.WebsocketReceive(text=message.data))
            elif message.type is aiohttp.WSMsgType.BINARY:
                await exchange.say(websocket_receive=api_pb2.Asgi.WebsocketReceive(bytes=message.data))
        if to_client.done():
            await to_client
        return socket.close_code or _GONE
    finally:
        to_client.cancel()


async def _to_client(exchange: Exchange, socket: web.WebSocketResponse) -> None:
    async for message in exchange.messages:
        if message.HasField("websocket_close"):
            close = message.websocket_close
            await socket.close(code=close.code or _GOING_NORMALLY, message=close.reason.encode())
            return
        sent = message.websocket_send
        if sent.WhichOneof("content") == "text":
            await socket.send_str(sent.text)
        else:
            await socket.send_bytes(sent.bytes)
    await socket.close(code=_FAILED if await exchange.failed() else _GOING_NORMALLY)
