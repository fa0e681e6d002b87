"""Whether a pip requirement always means the same package."""

from __future__ import annotations

import importlib.metadata
import re

from packaging.requirements import InvalidRequirement, Requirement

__all__ = ["requirement_fault"]

_COMMIT = re.compile(r"@[0-9a-f]{40}(#|$)")
_HASH = re.compile(r"#sha256=[0-9a-f]{64}")


def requirement_fault(text: str) -> str | None:
    """Why *text* is not a pinned requirement, with the line to write instead; none if it is.

    Examples:
        >>> requirement_fault("torch==2.13.0") is None
        True
        >>> requirement_fault("torch=2.13.0")
        "'torch=2.13.0' is not a requirement; write name==version"
    """
    if not text.isprintable():
        return f"{text!r} is more than one line; write name==version"
    try:
        wanted = Requirement(text)
    except InvalidRequirement:
        return f"{text!r} is not a requirement; write name==version"
    if wanted.url is not None:
        if _COMMIT.search(wanted.url) or _HASH.search(wanted.url):
            return None
        return f"{text!r} may change under its address; end it with @<40-digit commit> or #sha256=<digest>"
    exact = [one for one in wanted.specifier if one.operator in {"==", "==="} and not one.version.endswith(".*")]
    if exact:
        return None
    name = wanted.name + (f"[{','.join(sorted(wanted.extras))}]" if wanted.extras else "")
    marker = f"; {wanted.marker}" if wanted.marker else ""
    try:
        version = importlib.metadata.version(wanted.name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return f"{text!r} is not pinned; write '{name}==VERSION{marker}' (pip index versions {wanted.name} lists them)"
    return f"{text!r} is not pinned; write '{name}=={version}{marker}' (the version installed here)"
