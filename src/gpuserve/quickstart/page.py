"""The search page, under a policy that lets it run its own style and script, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi.responses import HTMLResponse

__all__ = ["page_response"]


def page_response() -> HTMLResponse:
    """The page as it is sent: whatever a docstring holds, the browser runs no other script."""
    from fastapi.responses import HTMLResponse

    text = importlib.resources.files("gpuserve.quickstart").joinpath("page.html").read_text()
    policy = (
        f"default-src 'none'; script-src {_digest(text, 'script')}; style-src {_digest(text, 'style')}; "
        "img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(text, headers=headers)


def _digest(text: str, element: str) -> str:
    """The one inline element of this kind, as a content security policy names it."""
    content = "".join(re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL))
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
