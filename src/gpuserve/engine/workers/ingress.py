"""HTTP endpoints at real URLs on loopback: one port each, so that apps keep their own paths."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from gpuserve.engine.state.streams import Streams
from gpuserve.engine.workers.asgi_bridge import AsgiBridge
from gpuserve.engine.workers.exchange import Exchanges, WebCalls
from gpuserve.engine.workers.server_proxy import ServerProxy, Servers
from gpuserve.engine.workers.web_scope import proxy_key_of
from gpuserve.engine.workers.websocket_bridge import WebsocketBridge

__all__ = ["Ingress", "Target"]

# Source: our choice; long cookies are common, and aiohttp's own limit is 8 KiB.
_MOST_HEADER_BYTES = 64 << 10
# Source: nginx's "client closed request".
_CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class Target:
    """What lies behind an address. ``kind`` is ``"asgi"`` or ``"server"``."""

    function_id: str
    method_name: str
    kind: str
    requires_proxy_auth: bool = False


@dataclass(slots=True)
class _Endpoint:
    target: Target
    url: str
    sock: socket.socket
    runner: web.AppRunner | None = None


class Ingress:
    """All web endpoints of one engine.

    Requests must name a loopback host (a page elsewhere cannot reach an endpoint by rebinding its
    own name), and ``X-Forwarded-*`` from outside is dropped.
    """

    def __init__(
        self,
        web_calls: WebCalls,
        servers: Servers,
        streams: Streams,
        *,
        read_blob: Callable[[str], bytes],
        proxy_tokens: Callable[[str, str], bool],
    ) -> None:
        """Start with no endpoint; *proxy_tokens* judges ``Modal-Key`` and ``Modal-Secret``."""
        self._exchanges = Exchanges(web_calls, streams, read_blob)
        self.http = AsgiBridge(self._exchanges)
        self._websockets = WebsocketBridge(self._exchanges)
        self._proxy = ServerProxy(servers)
        self._proxy_tokens = proxy_tokens
        self._endpoints: dict[str, _Endpoint] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing to do before the first endpoint."""

    def publish(self, label: str, target: Target, wanted: str = "") -> str:
        """Give *target* the address of *label*; the same label keeps its port.

        *wanted* is the address that the label had in an earlier engine; it is taken again if it is free.
        """
        known = self._endpoints.get(label)
        if known is not None:
            known.target = target
            return known.url
        sock = _listen(wanted)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        endpoint = self._endpoints[label] = _Endpoint(target, url, sock)
        job = asyncio.ensure_future(self._serve(endpoint))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return url

    async def _serve(self, endpoint: _Endpoint) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await self._handle(endpoint, request)
            except ConnectionResetError:
                return web.Response(status=_CLIENT_LEFT)  # for nobody to read, and no fault to log

        server = web.Server(handle, access_log=None, handler_cancellation=True, max_field_size=_MOST_HEADER_BYTES)
        endpoint.runner = web.ServerRunner(server)  # type: ignore[assignment]
        await endpoint.runner.setup()  # type: ignore[union-attr]
        await web.SockSite(endpoint.runner, endpoint.sock).start()  # type: ignore[arg-type]

    async def _handle(self, endpoint: _Endpoint, request: web.BaseRequest) -> web.StreamResponse:
        port = endpoint.sock.getsockname()[1]
        if request.headers.get("Host", "").lower() not in {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}:
            return web.json_response({"error": {"code": "misdirected", "message": "unknown host"}}, status=421)
        target = endpoint.target
        if target.requires_proxy_auth and not self._proxy_tokens(*proxy_key_of(request)):
            return web.Response(status=401, text="modal-http: missing credentials for proxy authorization")
        websocket = request.headers.get("Upgrade", "").lower() == "websocket"
        if target.kind == "server":
            return await self._proxy.handle(target.function_id, request, websocket=websocket)
        if websocket:
            return await self._websockets.handle(target.function_id, target.method_name, request)
        return await self.http.handle(target.function_id, target.method_name, request)

    def withdraw(self, url: str) -> None:
        """Close the endpoint at *url*."""
        for label, endpoint in list(self._endpoints.items()):
            if hmac.compare_digest(endpoint.url, url):
                del self._endpoints[label]
                job = asyncio.ensure_future(self._shut(endpoint))
                self._jobs.add(job)
                job.add_done_callback(self._jobs.discard)

    async def _shut(self, endpoint: _Endpoint) -> None:
        if endpoint.runner is not None:
            await endpoint.runner.cleanup()
        endpoint.sock.close()

    async def close(self) -> None:
        """Close every endpoint."""
        endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint in endpoints:
            await self._shut(endpoint)
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._exchanges.close()
        await self._proxy.close()


def _listen(wanted: str) -> socket.socket:
    port = urlsplit(wanted).port
    if port:
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port), backlog=512)
    return socket.create_server(("127.0.0.1", 0), backlog=512)
