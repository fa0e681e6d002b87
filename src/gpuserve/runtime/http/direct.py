"""The batched methods as plain ASGI: what most requests are for does without a framework's share of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.encoding import encode
from gpuserve.runtime.http.guard import Application, Message, Receive, Send, refusal
from gpuserve.runtime.http.inputs import InputReader, check_media
from gpuserve.runtime.server import ServerRuntime

__all__ = ["Direct", "DirectMethod"]

_JSON = "application/json"


class DirectMethod:
    """Answers requests for one batched method; *route* is its place among the application's routes."""

    def __init__(self, runtime: ServerRuntime, name: str, reader: InputReader, route: Any) -> None:
        self.route = route
        self._runtime, self._name, self._reader = runtime, name, reader

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, in the shape of every other route."""
        body = await _body(receive)
        if body is None:
            return  # the caller left
        headers = {"content-type": _JSON}
        status = 200
        try:
            check_media(scope["headers"])
            item = self._reader.read(body)
            key: str = scope.get("gpuserve_key", "")
            answer = encode({"output": await self._runtime.submit_checked(self._name, item, key=key)})
        except RequestError as error:
            status = error.status
            headers, answer = refusal(error)
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        pairs.append((b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": answer})


class Direct:
    """The application of one server: its batched methods at once, everything else by *app*."""

    def __init__(self, app: Application, methods: Iterable[DirectMethod]) -> None:
        self._app = app
        self._methods = {one.route.path: one for one in methods}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            method = self._methods.get(scope["path"])
            if method is not None:
                scope["route"] = method.route  # what the metrics call it
                await method(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _body(receive: Receive) -> bytes | None:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        whole: bytes = message.get("body", b"")
        return whole
    parts = []
    while message["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    return None
