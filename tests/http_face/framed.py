"""Requests byte by byte: the parts from which the tests of framing put together what no client would send."""

from __future__ import annotations

from .conftest import KEY

AUTH = f"Host: here\r\nAuthorization: Bearer {KEY}\r\n".encode()
SECOND = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"
BODY = b'{"input": {"prompt": "a"}}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def post(*lines: bytes, body: bytes = b"", first: bytes = b"POST /predict HTTP/1.1") -> bytes:
    return first + b"\r\n" + AUTH + b"".join(lines) + b"\r\n" + body
