"""HTTP endpoints at real URLs on loopback: one port each, so that apps keep their own paths."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gpuserve.engine.state.streams import Streams
from gpuserve.engine.workers.asgi_bridge import AsgiBridge, WebCalls

__all__ = ["Ingress", "Target"]


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
        streams: Streams,
        *,
        read_blob: Callable[[str], bytes],
        proxy_tokens: Callable[[str, str], bool] | None = None,
    ) -> None:
        """Start with no endpoint; *proxy_tokens* judges ``Modal-Key`` and ``Modal-Secret``."""
        self._bridge = AsgiBridge(web_calls, streams, read_blob)
        self._proxy_tokens = proxy_tokens or (lambda _key, _secret: False)
        self._endpoints: dict[str, _Endpoint] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing to do before the first endpoint."""

    def publish(self, label: str, target: Target) -> str:
        """Give *target* the address of *label*; the same label keeps its port."""
        known = self._endpoints.get(label)
        if known is not None:
            known.target = target
            return known.url
        sock = socket.create_server(("127.0.0.1", 0), backlog=512)
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        endpoint = self._endpoints[label] = _Endpoint(target, url, sock)
        job = asyncio.ensure_future(self._serve(endpoint))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return url

    async def _serve(self, endpoint: _Endpoint) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            return await self._handle(endpoint, request)

        server = web.Server(handle, access_log=None)
        endpoint.runner = web.ServerRunner(server)  # type: ignore[assignment]
        await endpoint.runner.setup()  # type: ignore[union-attr]
        await web.SockSite(endpoint.runner, endpoint.sock).start()  # type: ignore[arg-type]

    async def _handle(self, endpoint: _Endpoint, request: web.BaseRequest) -> web.StreamResponse:
        port = endpoint.sock.getsockname()[1]
        if request.headers.get("Host", "") not in {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}:
            return web.json_response({"error": {"code": "misdirected", "message": "unknown host"}}, status=421)
        target = endpoint.target
        if target.requires_proxy_auth:
            key, secret = request.headers.get("Modal-Key", ""), request.headers.get("Modal-Secret", "")
            if not self._proxy_tokens(key, secret):
                text = "modal-http: missing credentials for proxy authorization"
                return web.Response(status=401, text=text)
        if target.kind == "server":
            return await self._bridge.proxy(target.function_id, request)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return web.Response(status=501, text="websockets are not served by the local engine yet")
        return await self._bridge.handle(target.function_id, target.method_name, request)

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
        await self._bridge.close()
