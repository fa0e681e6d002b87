"""The labels of web endpoints: one an endpoint, the same after each reload."""

from __future__ import annotations

import hashlib
import re

__all__ = ["label_of"]

# Source: a DNS label holds 63 characters; Modal shortens longer ones with a hash.
_LONGEST = 56


def label_of(app: str, name: str, *, requested: str, suffix: str) -> str:
    """The label of an endpoint, from its app's and its own name or from what was requested.

    Examples:
        >>> label_of("My App", "Model-web", requested="", suffix="dev")
        'my-app-model-web-dev'
    """
    base = requested or f"{app}-{name}"
    whole = f"{base}-{suffix}" if suffix else base
    label = re.sub(r"[^a-z0-9]+", "-", whole.lower()).strip("-") or "app"
    if len(label) <= _LONGEST:
        return label
    return f"{label[: _LONGEST - 7]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
