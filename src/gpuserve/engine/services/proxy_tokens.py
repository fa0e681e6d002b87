"""Proxy tokens: the keys of endpoints that require one (``requires_proxy_auth``, and servers by default)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.store import Store

__all__ = ["ProxyTokenService"]

_TABLE = """
CREATE TABLE IF NOT EXISTS proxy_tokens (
    id TEXT PRIMARY KEY, sha256 BLOB NOT NULL, name TEXT NOT NULL, created_at REAL NOT NULL);
"""


class ProxyTokenService:
    """The RPCs of `modal workspace proxy-tokens`; a token is good for every environment of the engine."""

    def __init__(self, store: Store) -> None:
        """Keep the digests of secrets in *store*, and never the secrets."""
        self._store = store
        store.create_tables(_TABLE)

    def accepts(self, token_id: str, secret: str) -> bool:
        """Whether a request with this ``Modal-Key`` and ``Modal-Secret`` may pass."""
        row = self._store.one("SELECT sha256 FROM proxy_tokens WHERE id = ?", (token_id,))
        given = hashlib.sha256(secret.encode()).digest()
        return row is not None and hmac.compare_digest(bytes(row[0]), given)

    async def WebhookTokenCreate(
        self, request: api_pb2.WebhookTokenCreateRequest, _caller: Caller
    ) -> api_pb2.TokenCreateResponse:
        """Make a token; its secret is told this once, and only in memory is its answer kept for a retry."""
        token_id, secret = f"wk-{secrets.token_urlsafe(16)}", f"ws-{secrets.token_urlsafe(24)}"
        self._store.execute(
            "INSERT INTO proxy_tokens (id, sha256, name, created_at) VALUES (?, ?, ?, ?)",
            (token_id, hashlib.sha256(secret.encode()).digest(), request.name, time.time()),
        )
        return api_pb2.TokenCreateResponse(token_id=token_id, token_secret=secret)

    def WebhookTokenUpdate(self, request: api_pb2.WebhookTokenUpdateRequest, _caller: Caller) -> api_pb2.WebhookToken:
        """Give a token another name."""
        self._known(
            self._store.execute("UPDATE proxy_tokens SET name = ? WHERE id = ?", (request.name, request.token_id))
        )
        return api_pb2.WebhookToken(token_id=request.token_id, name=request.name)

    def WebhookTokenDelete(self, request: api_pb2.TokenDeleteRequest, _caller: Caller) -> Empty:
        """Delete a token; requests that carry it are refused from now on."""
        self._known(self._store.execute("DELETE FROM proxy_tokens WHERE id = ?", (request.token_id,)))
        return Empty()

    def _known(self, changed: int) -> None:
        if not changed:
            refuse(Status.NOT_FOUND, "there is no proxy token of that id")

    async def WebhookTokenList(self, _request: Empty, _caller: Caller) -> api_pb2.WebhookTokenListResponse:
        """All tokens, without their secrets."""
        rows = self._store.query("SELECT id, name, created_at FROM proxy_tokens ORDER BY created_at")
        found = api_pb2.WebhookTokenListResponse()
        for token_id, name, created_at in rows:
            found.tokens.add(token_id=token_id, name=name, created_at=created_at).created_by.username = "local"
        return found

    async def WebhookTokenListForEnvironment(
        self, _request: api_pb2.WebhookTokenListForEnvironmentRequest, caller: Caller
    ) -> api_pb2.WebhookTokenListResponse:
        """The tokens that are good for an environment: all of them."""
        return await self.WebhookTokenList(Empty(), caller)
