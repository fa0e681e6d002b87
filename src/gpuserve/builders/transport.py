"""What a class that is served over HTTP alone may not declare: it would never come to bear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuserve.specs.http import Http
from gpuserve.specs.server import ServerDeclaration

__all__ = ["INSTEAD", "http_only_faults", "is_http_only"]

INSTEAD = "write transport='asgi' in Http(…) to have it"

# What belongs to calls by RPC, and why HTTP alone has no use for it.
_OF_CALLS = {
    "retries": "nobody tries a request again but its client",
    "timeout_s": "what ends a request is Http(timeout_s=…)",
    "max_parameter_sets": "a server has no parameters",
}


def is_http_only(http: Any) -> bool:
    """Whether a class with this HTTP face is Modal's ``@app.server``."""
    return isinstance(http, Http) and http.transport == "server"


def http_only_faults(cls: type, values: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that only RPC brings, where *values* declare ``transport='server'``."""
    if not is_http_only(values["http"]):
        return []
    faults = [
        f"{name} got {values[name]!r} with transport='server', which has no calls by RPC: {why}; "
        f"leave it out, or {INSTEAD}"
        for name, why in _OF_CALLS.items()
        if values[name] != ServerDeclaration.model_fields[name].default
    ]
    # modal is not imported here; its parameters are known by where their class lives
    for name in dict.fromkeys(name for base in cls.__mro__ for name in vars(base)):
        kind = type(getattr(cls, name, None))
        if kind.__module__ == "modal.cls" and kind.__name__ == "_Parameter":
            faults.append(
                f"{name} is a modal.parameter() with transport='server', which has one pool of containers for all; "
                f"take the value from the request, or {INSTEAD}"
            )
    # Modal's own names for its containers' variables: ours tell by them where it may listen
    faults += [
        f"env got {name!r} with transport='server': names that begin with MODAL_ are Modal's own; call it otherwise"
        for name in (values["env"] if isinstance(values["env"], Mapping) else ())
        if str(name).startswith("MODAL_")
    ]
    return faults
