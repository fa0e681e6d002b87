"""Requests that come while the server leaves: refused at once, so that their callers go elsewhere."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.guard import Application, Receive, Send, refusal
from gpuserve.runtime.server import ServerRuntime

__all__ = ["Draining"]

_RETRY_AFTER_S = 1.0
# A server that leaves is alive still, and says itself that it is not ready.
_ANSWERED = frozenset({"/health", "/ready"})


class Draining:
    """Hands requests on until the server leaves; those that came before are answered to their end."""

    def __init__(self, app: Application, runtime: ServerRuntime) -> None:
        self._app, self._runtime = app, runtime

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer 503 with ``Retry-After`` where the server is about to leave."""
        if scope["type"] != "http" or not self._runtime.draining or scope["path"] in _ANSWERED:
            await self._app(scope, receive, send)
            return
        error = RequestError("the server is shutting down; try again", "shutting_down", 503, _RETRY_AFTER_S)
        headers, body = refusal(error)
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})
