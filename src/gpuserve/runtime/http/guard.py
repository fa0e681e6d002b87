"""The ASGI layer in front of every route: hosts, keys, limits, time, and errors in one shape."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import secrets
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.requests import ClientDisconnect

from gpuserve.exceptions import RequestError
from gpuserve.runtime.http.keys import BearerKeys
from gpuserve.runtime.http.rate_limit import RateLimit
from gpuserve.runtime.telemetry.record import CURRENT, RequestRecord
from gpuserve.runtime.telemetry.redact import redactor
from gpuserve.specs.http import Http

__all__ = ["OPEN_PATHS", "REPORTED", "Application", "Guard", "internal_error", "refusal", "report_failure"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

REPORTED = "gpuserve_reported"
"""The scope's mark of a failure that is in the log already."""
PROXY = "modal-proxy"
"""Who calls a server whose callers Modal alone checks."""

OPEN_PATHS = frozenset({"/health", "/ready"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
# Source: RFC 9112, 3.2, and the host of RFC 3986 without what no host that is called has (commas, quotes, brackets).
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+)(?::[0-9]*)?")
_KEY_IN_QUERY = re.compile(rb"(?:^|&)(?:api[-_]?key|key|(?:access[-_])?token|auth(?:orization)?)=", re.IGNORECASE)
# Bytes a second of a body that is no attempt to hold the connection: a modem's.
_SLOWEST_BODY = 1024
# Request Timeout: what is left of the request never comes, and the connection is of no more use.
_CLOSING_STATUS = 408
_EVENTS = b"text/event-stream"
_EITHER = "send Authorization: Bearer KEY with a key of this server"


def refusal(error: RequestError) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a refusal: one shape for all."""
    headers = {"content-type": "application/json"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:  # noqa: PLR2004 (unauthorized)
        headers["www-authenticate"] = 'Bearer realm="gpuserve"'
    kind = "server_error" if error.status >= 500 else "invalid_request_error"  # noqa: PLR2004
    body = {"type": kind, "code": error.code, "message": error.message, "param": getattr(error, "param", None)}
    return headers, json.dumps({"error": body}).encode()


def internal_error(request_id: str) -> RequestError:
    """What a caller is told of a failure inside the server: where its log has more, and nothing else."""
    return RequestError(f"the server failed; its log has the reason under {request_id}", "internal_error", 500)


def report_failure(request_id: str) -> None:
    """Write the exception at hand to the log, under the id that the caller was given."""
    sys.stderr.write(redactor(f"request {request_id} failed\n{traceback.format_exc()}"))


class Guard:
    """Wraps the server's application.

    Args:
        app: What answers.
        http: What was declared.
        keys: Who may call; ``None`` where Modal alone checks that.
        answered: Told each request's route, status and seconds.
        observers: Told each request's whole record, when it is over.
    """

    def __init__(
        self,
        app: Application,
        http: Http,
        keys: BearerKeys | None,
        answered: Callable[[str, int, float], None],
        observers: Sequence[Callable[[RequestRecord], None]] = (),
    ) -> None:
        self._app = app
        self._answered = answered
        self._observers = tuple(observers)
        self._http = http
        self._keys = keys
        self._open = OPEN_PATHS | frozenset(http.public_paths)
        self._hosts = frozenset(host.encode() for host in http.hosts)
        limit = http.requests_per_minute
        self._rates = RateLimit(limit, http.burst) if limit is not None else None
        # Ids that nobody can guess from another server's; counted, because a random one costs more than the rest.
        self._ids = map("{}{:08x}".format, itertools.repeat(secrets.token_hex(12)), itertools.count())
        self._cold = True
        self._patience: set[asyncio.Timeout] = set()
        self._cut_off = False

    def cut_off(self) -> None:
        """End what is being answered still: the server leaves, and whoever waits is told so."""
        self._cut_off = True
        for one in self._patience:
            if not one.expired():
                one.reschedule(0)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Let through what may pass; answer the rest."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        named = dict(scope["headers"])
        given_id = named.get(b"x-request-id", b"")
        request_id = given_id.decode() if given_id and _REQUEST_ID.fullmatch(given_id) else next(self._ids)
        record = RequestRecord(request_id, scope["method"], time.perf_counter())
        answer = _Answer(send, record, http_1=scope.get("http_version", "1.1") != "2")
        scope["gpuserve_request_id"] = request_id
        try:
            self._check_headers(scope["headers"], named)
            record.key = scope["gpuserve_key"] = await self._identify(scope, named)
            body = self._bounded(receive, named)
            if record.key:
                record.cold_start, self._cold = self._cold, False
                if self._rates is not None:
                    self._rates.check(record.key, record.begun)
            CURRENT.set(record)
            async with asyncio.timeout(0 if self._cut_off else self._http.timeout_s) as patience:
                self._patience.add(patience)
                try:
                    await self._app(scope, body, answer.send)
                finally:
                    self._patience.discard(patience)
        except RequestError as error:
            await answer.fail(error)
        except ClientDisconnect:
            pass  # nobody is left to be told
        except TimeoutError:
            await answer.fail(self._too_late())
        except Exception:  # noqa: BLE001 (told in the log, not to the caller)
            if REPORTED not in scope:
                report_failure(request_id)
            await answer.fail(internal_error(request_id))
        finally:
            # the route, not the path: what callers make up must not become a label
            record.route = getattr(scope.get("route"), "path", "")
            record.parent = named.get(b"traceparent", b"").decode("latin-1")
            record.latency_s = time.perf_counter() - record.begun
            self._answered(record.route, record.status, record.latency_s)
            for tell in self._observers:
                tell(record)

    def _too_late(self) -> RequestError:
        if self._cut_off:
            return RequestError("the server is shutting down; try again", "shutting_down", 503, 1.0)
        limit = f"not answered within {self._http.timeout_s:g} s; try again later"
        return RequestError(limit, "timeout", 504, 1.0)

    async def _other(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            named = dict(scope["headers"])
            try:
                self._check_headers(scope["headers"], named)
                scope["gpuserve_key"] = key = await self._identify(scope, named)
                if self._rates is not None and key:
                    self._rates.check(key, time.perf_counter())
            except RequestError:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
        await self._app(scope, receive, send)

    def _check_headers(self, headers: list[tuple[bytes, bytes]], named: dict[bytes, bytes]) -> None:
        """Refuse too many, too large ones, those that must stand alone and do not, and strange hosts."""
        http = self._http
        if len(headers) > http.max_headers:
            fault = f"there are {len(headers)} headers; {http.max_headers} are the most"
            raise RequestError(fault, "headers_too_large", 431)
        size = sum(map(len, itertools.chain.from_iterable(headers)))
        if size > http.max_header_bytes:
            fault = f"the headers have {size:,} bytes; {http.max_header_bytes:,} are the most"
            raise RequestError(fault, "headers_too_large", 431)
        if len(named) != len(headers):
            for name in (b"host", b"authorization", b"content-length", b"content-type"):
                if sum(one == name for one, _ in headers) > 1:
                    fault = f"there are two {name.decode().title()} headers; send one"
                    raise RequestError(fault, "duplicate_header", 400)
        host = named.get(b"host")
        if not host:
            raise RequestError("there is no Host header; send the host that is called", "missing_host", 400)
        called = _HOST.fullmatch(host.strip(b" \t"))
        if called is None:
            raise RequestError("the Host header is no host; send the host that is called", "bad_host", 400)
        if self._hosts and called[1].lower().rstrip(b".") not in self._hosts:
            raise RequestError("this server does not answer to that Host", "wrong_host", 421)

    async def _identify(self, scope: MutableMapping[str, Any], named: dict[bytes, bytes]) -> str:
        preflight = scope.get("method") == "OPTIONS" and self._http.cors_origins
        if scope["path"] in self._open or preflight:
            return ""
        if self._keys is None:
            return PROXY
        await self._keys.renew()
        given = named.get(b"authorization")
        owner = self._keys.owner(given.decode("latin-1")) if given is not None else None
        if owner is None:
            hint = ""
            if given is None and _KEY_IN_QUERY.search(scope.get("query_string", b"")):
                hint = "; a key in the address ends up in logs, and is not looked at"
            raise RequestError(f"{_EITHER}{hint}", "unauthorized", 401)
        return owner

    def _bounded(self, receive: Receive, named: dict[bytes, bytes]) -> Receive:
        """*receive*, which ends a body that is too large or comes too slowly."""
        most, patience = self._http.max_body_bytes, self._http.body_timeout_s
        stated = named.get(b"content-length")
        if stated is not None:
            digits = stated.strip(b" \t")
            if not digits.isdigit():
                raise RequestError("Content-Length is not a number of bytes", "bad_content_length", 400)
            digits = digits.lstrip(b"0") or b"0"
            if len(digits) > 15 or int(digits) > most:  # noqa: PLR2004 (a petabyte, and no huge number to parse)
                raise _too_large(most)
            if digits == b"0":
                return receive
        elif b"transfer-encoding" not in named:
            return receive
        seen, whole, loop = 0, False, asyncio.get_running_loop()
        begun = loop.time()

        async def bounded() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(begun + patience + seen / _SLOWEST_BODY):
                    message = await receive()
            except TimeoutError:
                fault = f"the body did not come: {seen} bytes in {loop.time() - begun:.0f} s; send it at once"
                raise RequestError(fault, "body_timeout", 408) from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if seen > most:
                    raise _too_large(most)
            return message

        return bounded


def _too_large(most: int) -> RequestError:
    return RequestError(f"the body is over {most} bytes; send less at a time", "body_too_large", 413)


class _Answer:
    """What is sent: with a request id, and an error only where it cannot be taken for an answer.

    An event stream that fails midway ends with an event that says why; everything else is broken off.
    """

    __slots__ = ("_begun", "_ended", "_events", "_http_1", "_record", "_send")

    def __init__(self, send: Send, record: RequestRecord, *, http_1: bool) -> None:
        self._send = send
        self._record = record
        self._http_1 = http_1
        self._begun = False
        self._ended = False
        self._events = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            self._record.status = int(message["status"])
            headers = [*message.get("headers", ()), (b"x-request-id", self._record.request_id.encode())]
            if self._record.status == _CLOSING_STATUS and self._http_1:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
            self._events = any(name == b"content-type" and value.startswith(_EVENTS) for name, value in headers)
        else:
            self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            if self._events and message.get("body"):
                self._events = bytes(message["body"][-2:]) == b"\n\n"  # half an event must not get our own for an end
        await self._send(message)

    async def fail(self, error: RequestError) -> None:
        if self._ended:
            return  # the framework has told the caller already, in our own shape
        headers, body = refusal(error)
        if self._events:
            await self.send({"type": "http.response.body", "body": b"event: error\ndata: %s\n\n" % body})
            return
        if self._begun:
            raise error  # half an answer must not look like a whole one: the connection is broken off
        pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        pairs.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})
