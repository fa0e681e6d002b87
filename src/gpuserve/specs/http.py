"""The HTTP face of a server."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gpuserve.specs.base import Spec
from gpuserve.specs.secret import SecretSpec

__all__ = ["API_KEYS", "DEFAULT_PORT", "Http"]

API_KEYS = "GPUSERVE_API_KEYS"
"""The variable with the bearer keys: ``name:key`` pairs, separated by commas."""

# Source: modal 1.6.4, app.server's own default.
DEFAULT_PORT = 8000


class Http(Spec):
    """The HTTP face of a server: who may call it, how much a call may bring, and how it gets there.

    With ``transport="asgi"`` each request is an input of Modal's, beside those of RPC. With ``transport="server"``
    (Modal's ``@app.server``) the container listens on a port itself: a fraction of the latency, HTTP alone.

    Everything but ``/health``, ``/ready`` and the paths in ``public_paths`` needs ``Authorization:
    Bearer KEY``. The keys come from the variable ``GPUSERVE_API_KEYS`` of one of the server's
    secrets: ``name:key`` pairs separated by commas, each key of 16 characters or more; new ones are
    seen by new containers. Keys in a ``modal.Dict`` are seen by running ones too. A server without
    keys does not start, unless Modal itself asks for a proxy token.

    Examples:
        >>> Http(keys=SecretSpec(name="search-keys")).max_body_bytes
        1048576
        >>> Http(keys_dict="search-keys", requests_per_minute=600, burst=20).keys_max_age_s
        60.0
    """

    keys: SecretSpec | None = None
    """the secret that brings `GPUSERVE_API_KEYS`; none if another secret of the server does"""
    keys_dict: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = None
    """a modal.Dict with more keys: the sha256 of each, in hexadecimal digits, by the key's name"""
    keys_max_age_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    """seconds that what was read of `keys_dict` is believed, and a key taken out still works, 1 to 3,600"""
    requires_proxy_auth: bool = False
    """whether Modal asks for a proxy token (Modal-Key and Modal-Secret) before the server is reached"""
    public_paths: tuple[Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*$")], ...] = ()
    """paths that need no key, matched exactly; for pages, never for data"""
    hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")], ...] = ()
    """host names that the server answers to, in small letters; any unless given"""
    cors_origins: tuple[str, ...] = ()
    """origins whose pages may call the server"""
    requests_per_minute: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """requests a minute that each key may send to each container; past it 429"""
    burst: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """requests that a key which was silent may send at once; those of a second unless given"""
    max_body_bytes: Annotated[int, Field(ge=1, le=256 * 2**20)] = 2**20
    """bytes that a request's body may have"""
    max_json_values: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    """values that the JSON of a body may hold, names included"""
    max_header_bytes: Annotated[int, Field(ge=1024, le=2**20)] = 32_768
    """bytes that a request's headers may have together"""
    max_headers: Annotated[int, Field(ge=8, le=1000)] = 100
    """headers that a request may have"""
    body_timeout_s: Annotated[float, Field(gt=0, le=150)] = 10.0
    """seconds that a body may keep silent before the request is answered 408"""
    timeout_s: Annotated[float, Field(gt=0, le=150)] = 60.0
    """seconds until a request is answered 504; Modal itself answers 303 after 150 s"""
    transport: Literal["asgi", "server"] = "asgi"
    """'asgi' for HTTP beside RPC, 'server' for HTTP alone with less latency"""
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    """the port that the container listens on with transport='server'"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.burst is not None and self.requests_per_minute is None:
            raise ValueError(f"burst={self.burst} needs requests_per_minute; write both or neither")
        if self.transport != "server" and self.port != DEFAULT_PORT:
            raise ValueError(
                f"port={self.port} with transport={self.transport!r}, which listens on none; "
                f"leave it out, or write transport='server'"
            )
        return self
