"""From an RPC on the wire to a method of a service, with who called and what was answered before.

A service is a plain object. Each of its methods that has an RPC's name handles that RPC:

* ``def Name(self, request, caller)`` changes durable state: it runs inside one transaction, in
  which its reply is recorded under the caller's idempotency key;
* ``async def Name(self, request, caller)`` may wait; a repeated key joins the first attempt. Where
  it changes durable state as well, it does so in ``caller.durably``, at the end of the wait. It is
  broken off when the last client that waits for it leaves;
* an async generator handles an RPC that streams.

Services raise `refuse` for what the caller did wrong; any other exception is the engine's own fault,
is logged with its traceback, and reaches the client as INTERNAL without internals.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import inspect
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import grpclib.const
import grpclib.server
from grpclib import GRPCError, Status

from gpuserve.engine.container_rpcs import CONTAINER_RPCS
from gpuserve.engine.protocol import RPCS, Message, Rpc
from gpuserve.engine.replies import Replies
from gpuserve.engine.store import Store

__all__ = ["Access", "Caller", "Servicer", "refuse"]

log = logging.getLogger("gpuserve.engine")

# A message is a header, and names what the caller sent: one of a megabyte kept the engine busy for a minute.
_LONGEST_MESSAGE = 4_000

Effect = Callable[[], Message]


def _outside_of_an_rpc(_effect: Effect) -> NoReturn:
    raise TypeError("durably belongs to a caller that an RPC was handed")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: a client with the engine's token, or one container on its own socket.

    Attributes:
        durably: For methods that wait: runs an effect and records its reply, in one transaction.
    """

    task_id: str = ""
    key: str = ""
    client_version: str = ""
    durably: Callable[[Effect], Any] = field(default=_outside_of_an_rpc, compare=False, repr=False)

    @property
    def is_container(self) -> bool:
        """Whether the call came over a container's own socket."""
        return bool(self.task_id)


def refuse(status: Status, message: str) -> NoReturn:
    """End an RPC with *status*; the modal client turns it into its own exception."""
    raise GRPCError(status, message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…")


@dataclass(frozen=True, slots=True)
class Access:
    """What one listening socket accepts: a token (clients), or one task's RPCs (containers)."""

    token_id: str = ""
    token_secret: str = ""
    task_id: str = ""

    def caller(self, rpc: str, metadata: Any) -> Caller:
        """Name the caller, or refuse.

        Raises:
            GRPCError: UNAUTHENTICATED for a missing or wrong token, PERMISSION_DENIED for an RPC
                that containers may not call.
        """
        key = str(metadata.get("x-idempotency-key") or "")
        if self.task_id:
            if rpc not in CONTAINER_RPCS:
                refuse(Status.PERMISSION_DENIED, f"a container may not call {rpc}")
            return Caller(task_id=self.task_id, key=key)
        given_id = str(metadata.get("x-modal-token-id") or "").encode()
        given_secret = str(metadata.get("x-modal-token-secret") or "").encode()
        good_id = hmac.compare_digest(given_id, self.token_id.encode())
        good_secret = hmac.compare_digest(given_secret, self.token_secret.encode())
        if not (good_id and good_secret and self.token_secret):
            refuse(Status.UNAUTHENTICATED, "token missing or wrong: run `gpuserve local env` for this engine's own")
        return Caller(key=key, client_version=str(metadata.get("x-modal-client-version") or "")[:40])


class Servicer:
    """All services behind one grpclib mapping; unknown RPCs answer UNIMPLEMENTED by name."""

    def __init__(
        self,
        services: Iterable[object],
        store: Store,
        replies: Replies,
        access: Access,
        instead: Callable[[str], str],
        undone: Callable[[], None],
        waiting: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        """Find each RPC's method among *services*.

        *instead* says what works for an RPC that has none; *undone* puts back in memory what a transaction changed
        that the disk did not take; *waiting* is entered with a task's id while it waits for what others do.
        """
        self._instead, self._undone, self._waiting = instead, undone, waiting
        self._store = store
        self._replies = replies
        self._access = access
        self._methods: dict[str, Callable[[Any, Caller], Any]] = {}
        for service in services:
            for name in RPCS:
                method = getattr(service, name, None)
                if method is not None:
                    self._methods[name] = method

    @property
    def implemented(self) -> frozenset[str]:
        """The names of the RPCs that some service handles."""
        return frozenset(self._methods)

    def for_access(self, access: Access) -> Servicer:
        """The same services behind another door."""
        door = object.__new__(Servicer)
        door._store, door._replies, door._access, door._methods = self._store, self._replies, access, self._methods
        door._instead, door._undone, door._waiting = self._instead, self._undone, self._waiting
        return door

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        """Grpclib's table: one handler an RPC."""
        return {rpc.path: self._handler(rpc) for rpc in RPCS.values()}

    def _handler(self, rpc: Rpc) -> grpclib.const.Handler:
        method = self._methods.get(rpc.name)
        if method is None:
            serve = self._serve_missing(rpc)
        elif rpc.streams:
            serve = self._serve_stream(rpc, method)
        else:
            serve = self._serve_unary(rpc, method)
        cardinality = grpclib.const.Cardinality.UNARY_STREAM if rpc.streams else grpclib.const.Cardinality.UNARY_UNARY
        return grpclib.const.Handler(serve, cardinality, rpc.request, rpc.reply)

    def _serve_missing(self, rpc: Rpc) -> Any:
        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            self._access.caller(rpc.name, stream.metadata)
            refuse(
                Status.UNIMPLEMENTED,
                f"gpuserve's local engine does not implement {rpc.name}; what works instead: {self._instead(rpc.name)}",
            )

        return serve

    def _serve_stream(self, rpc: Rpc, method: Callable[[Any, Caller], Any]) -> Any:
        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            caller = self._access.caller(rpc.name, stream.metadata)
            request = await stream.recv_message()
            try:
                async for message in method(request, caller):
                    await stream.send_message(message)
            except GRPCError:
                raise
            except Exception as error:
                log.exception("%s failed", rpc.name)
                raise GRPCError(Status.INTERNAL, f"{rpc.name} failed inside the engine; see its log") from error

        return serve

    def _serve_unary(self, rpc: Rpc, method: Callable[[Any, Caller], Any]) -> Any:
        waits = inspect.iscoroutinefunction(method)

        async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
            caller = self._access.caller(rpc.name, stream.metadata)
            request = await stream.recv_message()
            try:
                if rpc.name in _IDLE:
                    with self._waiting(caller.task_id):
                        reply = await self._wait(rpc, method, request, caller)
                elif waits:
                    reply = await self._wait(rpc, method, request, caller)
                else:
                    reply = self._transact(rpc, method, request, caller)
            except GRPCError:
                raise
            except Exception as error:
                # FAILED_PRECONDITION is not retried: the effect was rolled back and would fail again.
                # (For a full disk RESOURCE_EXHAUSTED would be the name, but a client's queue takes it for its own.)
                if _is_disk_full(error):
                    refuse(
                        Status.FAILED_PRECONDITION,
                        f"{rpc.name} was not done: the disk of the engine's state folder (GPUSERVE_HOME) is full. "
                        "Nothing that was acknowledged is lost. Free some space, and try again.",
                    )
                log.exception("%s failed", rpc.name)
                raise GRPCError(
                    Status.FAILED_PRECONDITION, f"{rpc.name} failed inside the engine: {type(error).__name__}"
                ) from error
            await stream.send_message(reply)

        return serve

    async def _wait(
        self, rpc: Rpc, method: Callable[[Any, Caller], Coroutine[Any, Any, Message]], request: Any, caller: Caller
    ) -> Message:
        key, digest = self._place(rpc, request, caller)
        asking = replace(caller, durably=lambda effect: self._once(rpc, key, digest, effect))
        if not key:
            return await method(request, asking)
        known = self._replies.recall(rpc, key, digest)
        if known is not None:
            return known
        reply: Message = await self._replies.join(rpc, key, digest, lambda: method(request, asking))
        return reply

    def _transact(self, rpc: Rpc, method: Callable[[Any, Caller], Message], request: Any, caller: Caller) -> Message:
        key, digest = self._place(rpc, request, caller)
        if key:
            known = self._replies.recall(rpc, key, digest)
            if known is not None:
                return known
        elif rpc.name in _REPEATABLE:
            return method(request, caller)
        return self._once(rpc, key, digest, lambda: method(request, caller))

    def _place(self, rpc: Rpc, request: Any, caller: Caller) -> tuple[str, bytes]:
        """Where the answer is kept, if one is."""
        if not caller.key or rpc.name in _REPEATABLE:
            return "", b""
        return _scoped(caller), _digest(request)

    def _once(self, rpc: Rpc, key: str, digest: bytes, effect: Effect) -> Message:
        """Run *effect* and record its reply, in one transaction."""
        on_disk: list[bool] = []
        try:
            with self._store.transaction():
                self._store.after_commit(lambda: on_disk.append(True))
                reply = effect()
                if key:
                    self._replies.record(rpc, key, digest, reply)
        except GRPCError:
            raise
        except BaseException:
            if not on_disk:
                self._undone()
            elif key:  # what was to follow the commit failed: the client is told, and may try again
                self._replies.forget(rpc, key)
            raise
        return reply


def _scoped(caller: Caller) -> str:
    return f"{caller.task_id}:{caller.key}"


def _digest(request: Message) -> bytes:
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=16).digest()


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        return code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


# RPCs that change nothing, or whose repetition is harmless: no answer is kept for them.
_REPEATABLE = frozenset(
    {
        "AppGetByDeploymentName", "AppGetInfo", "AppGetLayout", "AppGetLifecycle", "AppGetObjects", "AppGetTags",
        "AppHeartbeat", "AppList", "AppLookup", "AuthTokenGet", "BlobGet", "ClassGet", "ClientHello",
        "ContainerHeartbeat", "ContainerHello", "DictContains", "DictGet", "DictGetById", "DictHeartbeat", "DictLen",
        "DictList", "EnvironmentList", "FunctionCallFromId", "FunctionCallGetInfo", "FunctionCallList", "FunctionGet",
        "FunctionGetById", "FunctionGetCallGraph", "FunctionGetCurrentStats", "FunctionGetDynamicConcurrency",
        "FunctionGetOutputs", "FunctionGetSchedulingParams", "FunctionGetSerialized", "FunctionListVariants",
        "ImageFromId", "MountBatchedCheckExistence", "MountPutFile", "QueueGetById", "QueueHeartbeat", "QueueLen",
        "QueueList", "QueueNextItems", "SecretGetInfo", "SecretList", "TaskCurrentInputs", "TaskGetInfo", "TaskList",
        "TokenInfoGet", "VolumeGetById", "VolumeGetFile", "VolumeGetFile2", "VolumeHeartbeat", "VolumeList",
        "WebhookTokenList", "WebhookTokenListForEnvironment", "WorkspaceBillingRates", "WorkspaceNameLookup",
    }
)  # fmt: skip

# While one of these waits for what others do, a container's input does nothing itself.
_IDLE = frozenset({"FunctionGetOutputs", "QueueGet", "QueueNextItems"})
