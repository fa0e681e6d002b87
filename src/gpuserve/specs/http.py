"""The HTTP face of a server."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gpuserve.specs.base import Spec
from gpuserve.specs.secret import SecretSpec

__all__ = ["API_KEYS", "Http"]

API_KEYS = "GPUSERVE_API_KEYS"
"""The variable with the bearer keys: ``name:key`` pairs, separated by commas."""


class Http(Spec):
    """The HTTP face of a server: who may call it, and how much a call may bring.

    Everything but ``/health``, ``/ready`` and the paths in ``public_paths`` needs ``Authorization:
    Bearer KEY``. The keys come from the variable ``GPUSERVE_API_KEYS`` of one of the server's
    secrets: ``name:key`` pairs separated by commas, each key of 16 characters or more. A server
    without keys does not start.

    Examples:
        >>> Http(keys=SecretSpec(name="search-keys")).max_body_bytes
        1048576
    """

    keys: SecretSpec | None = None
    """the secret that brings `GPUSERVE_API_KEYS`; none if another secret of the server does"""
    public_paths: tuple[Annotated[str, Field(pattern=r"^/[A-Za-z0-9._~/-]*$")], ...] = ()
    """paths that need no key, matched exactly; for pages, never for data"""
    cors_origins: tuple[str, ...] = ()
    """origins whose pages may call the server"""
    max_body_bytes: Annotated[int, Field(ge=1, le=256 * 2**20)] = 2**20
    """bytes that a request's body may have"""
    timeout_s: Annotated[float, Field(gt=0, le=150)] = 60.0
    """seconds until a request is answered 504; Modal itself answers 303 after 150 s"""
