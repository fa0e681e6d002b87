"""uvicorn's HTTP/1.1 protocol on httptools, with the limits that it leaves to others."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.guard import refusal

__all__ = ["Connections", "HttpProtocol"]

# The request line and all headers together. Source: what the local engine's ingress and most proxies let through.
_MOST_HEAD_BYTES = 64 << 10
# From a request's first byte to the end of its headers, which an honest client sends in one piece.
_HEAD_S = 10.0


class Connections(ServerState):
    """What the connections of one server share: whether it is leaving."""

    def __init__(self) -> None:
        super().__init__()
        self.leaving = False
        self.gone = asyncio.Event()

    async def let_go(self) -> None:
        """Have each connection closed after the answer that it waits for, or its next one; wait until all are."""
        self.leaving = True
        for connection in self.connections:
            if isinstance(connection, HttpProtocol):
                connection.close_after_answer()
        while self.connections:
            self.gone.clear()
            await self.gone.wait()


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    A head that is too long is answered 431, one that does not end is cut off, and a request whose client has left
    is cancelled, so that it gives up its place in the queue.
    """

    server_state: Connections
    _running: asyncio.Task[None] | None = None
    _head_bytes = 0
    _in_body = False
    _head_is_late: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head_came()
        if self._running is not None and self.cycle.disconnected:
            self._running.cancel()
        self._running = None
        self.server_state.gone.set()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Between requests, too, a byte ended uvicorn's own wait for the next one: an empty line, or what is left of a
        # body that was refused, must not hold the connection for ever.
        between = self.cycle is None or self.cycle.response_complete
        if (self._head_bytes or between) and not self.transport.is_closing() and self in self.connections:
            self._await_head()  # a connection that became a websocket's is no longer among ours

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 1

    @override
    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if not self._in_body:  # a trailer is no header: it may neither bring a key nor say where the body ended
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_body = 0, True
        self._head_came()
        if self.transport.is_closing():
            return  # refused already
        # The parser ends a request for another protocol at its head, whatever body it says to have.
        is_cut = self.parser.should_upgrade() and not self._should_upgrade()
        fault = self._framing_fault(is_cut=is_cut)
        if fault is not None:
            self._refuse(fault)
            return
        if not self.url.startswith((b"/", b"*")):
            self._take_host_of_the_address()
        super().on_headers_complete()
        if is_cut or self.server_state.leaving:
            self.close_after_answer()

    @override
    def on_message_complete(self) -> None:
        self._head_bytes, self._in_body = 0, False  # a trailer is counted as the head is
        self._head_came()
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._await_head()  # answered before its body was whole: the rest is let pass, and not waited for long

    def close_after_answer(self) -> None:
        """Answer the request at hand as the connection's last, and say so; an idle connection may bring one more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(RequestError(f"{msg.rstrip('.')}: it is not HTTP/1.1", "invalid_http", 400))

    def _framing_fault(self, *, is_cut: bool) -> RequestError | None:
        """What of the headers has the request end elsewhere than a proxy before us may believe."""
        encodings = [one.strip().lower() for one in self._joined(b"transfer-encoding").split(b",") if one.strip()]
        if encodings not in ([], [b"chunked"]):
            fault = "the Transfer-Encoding is not chunked alone; send the body as it is"
            return RequestError(fault, "invalid_http", 400)
        if is_cut and (encodings or self._joined(b"content-length").strip(b"0 \t")):
            fault = "there is a body, and a protocol to change to that is not spoken here; send it without Upgrade"
            return RequestError(fault, "invalid_http", 400)
        return None

    def _joined(self, name: bytes) -> bytes:
        return b",".join(value for one, value in self.headers if one == name)

    def _take_host_of_the_address(self) -> None:
        """A whole address names the host that counts. Source: RFC 9112, 3.2.2."""
        address = httptools.parse_url(self.url)
        if address.host:
            port = b"" if address.port is None else b":%d" % address.port
            host = address.host + port
            self.headers[:] = [(name, host if name == b"host" else value) for name, value in self.headers]

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
            fault = f"the request line and headers are over {_MOST_HEAD_BYTES} bytes; send less"
            self._refuse(RequestError(fault, "head_too_large", 431))

    def _refuse(self, error: RequestError) -> None:
        if self.transport.is_closing():
            return
        headers, body = refusal(error)
        head = {**headers, "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {error.status} Refused", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()

    def _await_head(self) -> None:
        if self._head_is_late is None:
            self._head_is_late = self.loop.call_later(_HEAD_S, self.transport.close)

    def _head_came(self) -> None:
        if self._head_is_late is not None:
            self._head_is_late.cancel()
            self._head_is_late = None

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not cycle.disconnected:
                    raise

        self._running = task = self.loop.create_task(cycle.run_asgi(answer))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
