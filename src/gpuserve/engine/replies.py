"""What was answered to a call, for the client that repeats it under the same idempotency key."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from grpclib import GRPCError, Status

from gpuserve.engine.protocol import Message, Rpc
from gpuserve.engine.store import Store

__all__ = ["Replies"]

# How long an answer is kept for a retry. Source: modal 1.6.4 retries for at most minutes.
REPLY_LIFE_S = 600.0
_MOST_REPLIES = 50_000


@dataclass(slots=True)
class _Attempt:
    digest: bytes
    task: asyncio.Task[Message]
    waiting: int = 0


def _reused(rpc: Rpc) -> GRPCError:
    return GRPCError(Status.INVALID_ARGUMENT, f"{rpc.name}: this idempotency key was used for another request")


class Replies:
    """The answers of the last minutes, by RPC and idempotency key."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        """Keep waiting calls in memory and durable ones in *store*."""
        self._store = store
        self._clock = clock
        self._running: OrderedDict[tuple[str, str], _Attempt] = OrderedDict()
        self._swept_at = clock()

    def recall(self, rpc: Rpc, key: str, digest: bytes) -> Message | None:
        """Return the durable answer given to *key* before, if any."""
        row = self._store.one("SELECT digest, reply FROM replies WHERE rpc = ? AND key = ?", (rpc.name, key))
        if row is None:
            return None
        if not hmac.compare_digest(row[0], digest):
            raise _reused(rpc)
        return rpc.reply.FromString(row[1])

    def record(self, rpc: Rpc, key: str, digest: bytes, reply: Message) -> None:
        """Keep *reply* durably; call it inside the transaction of the effect."""
        now = self._clock()
        self._store.execute(
            "INSERT INTO replies (key, rpc, digest, reply, at) VALUES (?, ?, ?, ?, ?)",
            (key, rpc.name, digest, reply.SerializeToString(), now),
        )
        if now - self._swept_at > REPLY_LIFE_S / 10:
            self._swept_at = now
            self._store.execute("DELETE FROM replies WHERE at < ?", (now - REPLY_LIFE_S,))

    def forget(self, rpc: Rpc, key: str) -> None:
        """Owe no answer for *key* after all."""
        self._store.execute("DELETE FROM replies WHERE rpc = ? AND key = ?", (rpc.name, key))

    async def join(self, rpc: Rpc, key: str, digest: bytes, start: Callable[[], Coroutine[Any, Any, Message]]) -> Any:
        """Run *start* once for *key*; a second attempt waits for the first one's answer."""
        place = (rpc.name, key)
        attempt = self._running.get(place)
        if attempt is None:
            attempt = self._running[place] = _Attempt(digest, asyncio.ensure_future(start()))
            while len(self._running) > _MOST_REPLIES:
                self._running.popitem(last=False)
        elif not hmac.compare_digest(attempt.digest, digest):
            raise _reused(rpc)
        attempt.waiting += 1
        try:
            return await asyncio.shield(attempt.task)
        except Exception:
            self._running.pop(place, None)
            raise
        finally:
            attempt.waiting -= 1
            if not attempt.waiting and not attempt.task.done():
                # nobody is left to be answered: what it might take later would be lost
                self._running.pop(place, None)
                attempt.task.cancel()
