"""A page to try a server from: its methods, a request to write, the answer as it comes.

It holds no key and no data: whoever opens it enters a key, which the page keeps to itself. It is there where
``gpuserve local serve`` runs the app, and nowhere else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re
from collections.abc import MutableMapping
from typing import Any

from gpuserve.runtime.http.guard import Application, Receive, Send

__all__ = ["TRY_PAGE", "TryPage"]

TRY_PAGE = "GPUSERVE_TRY_PAGE"
"""The variable that adds the page to the servers of an app."""
_PATH = "/try"


class TryPage:
    """Answers ``GET /try`` with the page, and hands everything else on."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve the page under a policy that lets it run its own script and style, and nothing else."""
        if scope["type"] != "http" or scope["path"] != _PATH or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        body, headers = _page()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@functools.cache
def _page() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    text = importlib.resources.files("gpuserve.runtime.http").joinpath("try.html").read_text()
    policy = (
        f"default-src 'none'; script-src {_digest(text, 'script')}; style-src {_digest(text, 'style')}; "
        "img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return text.encode(), [(name.encode(), value.encode()) for name, value in headers.items()]


def _digest(text: str, element: str) -> str:
    """The one inline element of this kind, as a content security policy names it."""
    content = "".join(re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL))
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
