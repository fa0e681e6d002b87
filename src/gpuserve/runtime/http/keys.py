"""Bearer keys: several, named, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping

from gpuserve.exceptions import GpuserveError
from gpuserve.specs.http import API_KEYS

__all__ = ["BearerKeys", "KeysError"]

_SHORTEST_KEY = 16


class KeysError(GpuserveError, ValueError):
    """The server's keys are missing or malformed; the message never holds a key."""


class BearerKeys:
    """Who a bearer key belongs to.

    Examples:
        >>> keys = BearerKeys("ci:0123456789abcdef0123,ops:fedcba98765432100000")
        >>> keys.owner("Bearer fedcba98765432100000")
        'ops'
        >>> keys.owner("Bearer wrong") is None
        True
    """

    def __init__(self, text: str) -> None:
        """Read ``name:key`` pairs separated by commas.

        Raises:
            KeysError: If there is none, or one is malformed.
        """
        self._digests: dict[str, bytes] = {}
        for place, pair in enumerate(part.strip() for part in text.split(",") if part.strip()):
            name, separator, key = pair.partition(":")
            if not separator or not name or len(key) < _SHORTEST_KEY:
                raise KeysError(
                    f"{API_KEYS}: entry {place} is not name:key with a key of {_SHORTEST_KEY} characters or more; "
                    f"make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
            if name in self._digests:
                raise KeysError(f"{API_KEYS}: the name {name!r} is there twice; give each key its own")
            self._digests[name] = _digest(key)
        if not self._digests:
            raise KeysError(
                f"{API_KEYS} is not set, so that nobody could call the server; create a secret with it: "
                f"modal secret create NAME {API_KEYS}=name:key, and declare http = Http(keys=SecretSpec(name='NAME'))"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> BearerKeys:
        """Read them from the variable ``GPUSERVE_API_KEYS``."""
        return cls((environment if environment is not None else os.environ).get(API_KEYS, ""))

    def owner(self, authorization: str) -> str | None:
        """The name of the key in an ``Authorization`` header; none if it is nobody's.

        Every key is compared whatever the outcome, so that the time tells nothing.
        """
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        found: str | None = None
        for name, digest in self._digests.items():
            if hmac.compare_digest(digest, given):
                found = name
        return found if scheme.lower() == "bearer" else None

    def __repr__(self) -> str:
        """The names alone."""
        return f"BearerKeys({', '.join(self._digests)})"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
