"""Bearer keys: several, named, compared in constant time, from the environment and from a dict that is read again."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import sys
import time
from collections.abc import Callable, Mapping

from gpuserve.exceptions import GpuserveError, RequestError
from gpuserve.runtime.ports import KeyEntries, KeyPort
from gpuserve.specs.http import API_KEYS, Http

__all__ = ["BearerKeys", "KeysError", "SharedKeys", "keys_of"]

_SHORTEST_KEY = 16
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Unless they are fresh for half their time yet, they are read again while the old ones still hold.
_HALF = 0.5


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

    def __init__(self, text: str, *, shared: SharedKeys | None = None) -> None:
        """Read ``name:key`` pairs separated by commas; *shared* has more of them.

        Raises:
            KeysError: If there is none, or one is malformed.
        """
        self._digests: dict[str, bytes] = {}
        self._shared = shared
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
        if not self._digests and shared is None:
            raise KeysError(
                f"{API_KEYS} is not set, so that nobody could call the server; create a secret with it: "
                f"modal secret create NAME {API_KEYS}=name:key, and declare http = Http(keys=SecretSpec(name='NAME'))"
            )

    async def renew(self) -> None:
        """Read the shared keys again where it is time; nothing else waits here.

        Raises:
            RequestError: 503, if they are too old to be believed and cannot be read.
        """
        if self._shared is not None and self._shared.stale:
            await self._shared.renew()

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
        if self._shared is not None:
            for name, digest in self._shared.digests.items():
                if hmac.compare_digest(digest, given):
                    found = name
        return found if scheme.lower() == "bearer" else None

    def __repr__(self) -> str:
        """The names alone."""
        return f"BearerKeys({', '.join((*self._digests, *(self._shared.digests if self._shared else ())))})"


class SharedKeys:
    """Keys that are read again while the server runs; what is older than *max_age_s* lets nobody in.

    So a key that was taken out works for *max_age_s* at most. They are read again in the background
    once half of that has passed; a request waits for it only where nobody called in the meantime.

    Args:
        port: Where they are.
        max_age_s: Seconds that they are believed.
        clock: Seconds that never go back.
    """

    def __init__(self, port: KeyPort, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.digests: dict[str, bytes] = {}
        self._port = port
        self._max_age_s = max_age_s
        self._clock = clock
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    @property
    def stale(self) -> bool:
        """Whether it is time to read them again."""
        return self._clock() - self._read_at > self._max_age_s * _HALF

    async def renew(self) -> None:
        """Have them read; wait for it only where they are too old to be believed.

        Raises:
            RequestError: 503, if they are and cannot be read.
        """
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="gpuserve-keys")
        if self._clock() - self._read_at <= self._max_age_s:
            return
        await asyncio.wait([self._reading])
        if self._clock() - self._read_at > self._max_age_s:
            raise RequestError("the server's keys cannot be read now; try again", "keys_unavailable", 503, 1.0)

    async def _read(self) -> None:
        asked_at = self._clock()
        try:
            async with asyncio.timeout(self._max_age_s):
                entries = await self._port.read()
        except Exception as error:  # noqa: BLE001 (whatever it is, it must not let anybody in, nor end the server)
            sys.stderr.write(f"the keys could not be read again: {type(error).__name__}\n")
            return
        good = {name: value for name, value in entries.items() if isinstance(value, str) and _DIGEST.fullmatch(value)}
        for name in sorted(set(entries) - set(good)):
            sys.stderr.write(f"the key {name!r} is not used: store hashlib.sha256(key.encode()).hexdigest(), no key\n")
        self.digests = {name: bytes.fromhex(value) for name, value in good.items()}
        self._read_at = asked_at


def keys_of(http: Http, environment: Mapping[str, str] | None = None) -> BearerKeys | None:
    """The keys that *http* declares; none where Modal alone checks who calls.

    Raises:
        KeysError: If there is none, or one is malformed.
    """
    shared = None
    if http.keys_dict is not None:
        shared = SharedKeys(KeyEntries(http.keys_dict), http.keys_max_age_s)
    text = (environment if environment is not None else os.environ).get(API_KEYS, "")
    if http.requires_proxy_auth and http.keys is None and shared is None and not text:
        return None
    return BearerKeys(text, shared=shared)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
