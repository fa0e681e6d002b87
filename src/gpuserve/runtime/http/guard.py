"""The ASGI layer in front of every route: keys, limits, time, and errors in one shape."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.keys import BearerKeys
from gpuserve.specs.http import Http

__all__ = ["Guard", "internal_error", "refusal", "report_failure"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN_PATHS = frozenset({"/health", "/ready"})


def refusal(error: RequestError, *, param: str | None = None) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a refusal: one shape for all."""
    headers = {"content-type": "application/json"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if error.status == 401:  # noqa: PLR2004 (unauthorized)
        headers["www-authenticate"] = 'Bearer realm="gpuserve"'
    kind = "server_error" if error.status >= 500 else "invalid_request_error"  # noqa: PLR2004
    body = {"type": kind, "code": error.code, "message": error.message, "param": param}
    return headers, json.dumps({"error": body}).encode()


def internal_error(request_id: str) -> RequestError:
    """What a caller is told of a failure inside the server: where its log has more, and nothing else."""
    return RequestError(f"the server failed; its log has the reason under {request_id}", "internal_error", 500)


def report_failure(request_id: str) -> None:
    """Write the exception at hand to the log, under the id that the caller was given."""
    sys.stderr.write(f"request {request_id} failed\n{traceback.format_exc()}")


class Guard:
    """Wraps the server's application; *answered* is told each request's route, status and seconds."""

    def __init__(
        self, app: Application, http: Http, keys: BearerKeys, answered: Callable[[str, int, float], None]
    ) -> None:
        self._app = app
        self._answered = answered
        self._http = http
        self._keys = keys
        self._open = _OPEN_PATHS | frozenset(http.public_paths)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let through what may pass; answer the rest."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        begun = time.perf_counter()
        answer = _Answer(send, uuid.uuid4().hex)
        scope["gpuserve_request_id"] = answer.request_id
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        try:
            scope["gpuserve_key"] = self._identify(scope, headers)
            limited = self._limit(receive, headers)
            async with asyncio.timeout(self._http.timeout_s):
                await self._app(scope, limited, answer.send)
        except RequestError as error:
            await answer.fail(error)
        except TimeoutError:
            limit = f"not answered within {self._http.timeout_s:g} s; try again later"
            await answer.fail(RequestError(limit, "timeout", 504, 1.0))
        except Exception:  # noqa: BLE001 (told in the log, not to the caller)
            report_failure(answer.request_id)
            await answer.fail(internal_error(answer.request_id))
        finally:
            # the route, not the path: what callers make up must not become a label
            route = getattr(scope.get("route"), "path", "")
            self._answered(route, answer.status, time.perf_counter() - begun)

    async def _other(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            headers = [(name.lower(), value) for name, value in scope["headers"]]
            try:
                scope["gpuserve_key"] = self._identify(scope, headers)
            except RequestError:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
        await self._app(scope, receive, send)

    def _identify(self, scope: MutableMapping[str, Any], headers: list[tuple[bytes, bytes]]) -> str:
        preflight = scope.get("method") == "OPTIONS" and self._http.cors_origins
        if scope["path"] in self._open or preflight:
            return ""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) > 1:
            raise RequestError("there are two Authorization headers; send one", "duplicate_header", 400)
        owner = self._keys.owner(given[0].decode("latin-1")) if given else None
        if owner is None:
            raise RequestError("send Authorization: Bearer KEY with a key of this server", "unauthorized", 401)
        return owner

    def _limit(self, receive: Receive, headers: list[tuple[bytes, bytes]]) -> Receive:
        most = self._http.max_body_bytes
        too_large = RequestError(f"the body is over {most} bytes; send less at a time", "body_too_large", 413)
        for name, value in headers:
            if name == b"content-length" and (not value.isdigit() or int(value) > most):
                raise too_large
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > most:
                    raise too_large
            return message

        return limited


class _Answer:
    """What is sent: with a request id, and an error only where nothing was sent before."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 499  # as nginx has it: the caller left before there was an answer
        self._begun = False
        self._ended = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self.status = int(message["status"])
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: RequestError) -> None:
        if self._ended:
            return  # the framework has told the caller already, in our own shape
        if self._begun:
            raise error  # half an answer must not look like a whole one: the connection is broken off
        headers, body = refusal(error)
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})
