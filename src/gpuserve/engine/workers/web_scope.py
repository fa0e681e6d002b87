"""What an endpoint's app is told of a request: its ASGI scope, as Modal's own front sends it."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from aiohttp import web

__all__ = ["HOP_HEADERS", "is_passed_on", "proxy_key_of", "scope_of", "target_of"]

# Headers of one connection. Source: RFC 9110, 7.6.1.
HOP_HEADERS = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}
)
# What only a front may say, and what is for the front alone.
_NOT_PASSED_ON = frozenset(
    {"modal-key", "modal-secret", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded"}
)


def proxy_key_of(request: web.BaseRequest) -> tuple[str, str]:
    """The id and the secret of the proxy token that a request carries, in either of its two forms."""
    headers = request.headers
    if "Modal-Key" in headers:
        return headers["Modal-Key"], headers.get("Modal-Secret", "")
    token_id, _, secret = headers.get("Authorization", "").removeprefix("Bearer ").partition(".")
    return token_id, secret


def is_passed_on(name: str, value: str) -> bool:
    """Whether a header is for the app: not what is the front's to say, nor the key that was shown to it."""
    name = name.lower()
    return name not in _NOT_PASSED_ON and not (name == "authorization" and value.startswith("Bearer wk-"))


def target_of(request: web.BaseRequest) -> tuple[str, str]:
    """The path and the query of a request exactly as they were sent."""
    raw = request.raw_path
    if not raw.startswith("/"):  # the absolute form, as a proxy is asked
        parts = urlsplit(raw)
        raw = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path, _, query = raw.partition("?")
    return path, query


def scope_of(request: web.BaseRequest, kind: str) -> dict[str, Any]:
    """The scope of a request; *kind* is ``"http"`` or ``"websocket"``."""
    path, query = target_of(request)
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    headers = [
        [name.lower(), value]
        for name, value in request.raw_headers
        if is_passed_on(name.decode("latin-1"), value.decode("latin-1"))
        and (kind == "websocket" or name.decode("latin-1").lower() not in HOP_HEADERS)
    ]
    scope: dict[str, Any] = {
        "type": kind,
        "http_version": f"{request.version.major}.{request.version.minor}",
        "scheme": "http" if kind == "http" else "ws",
        "path": unquote(path),
        "query_string": query.encode("latin-1", errors="surrogateescape"),
        "headers": headers,
        "client": list(peer[:2]) if peer else None,
    }
    if kind == "http":
        scope |= {"method": request.method, "extensions": {"http.response.trailers": {}}}
    return scope
