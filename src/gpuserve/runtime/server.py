"""A served model in its process: started once, one thread for the model, one queue a method."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from gpuserve.exceptions import EngineError, GpuserveError, RequestError
from gpuserve.runtime.batcher import Batcher, BatchRecord
from gpuserve.runtime.telemetry.outlet import Outlet
from gpuserve.runtime.telemetry.record import RequestRecord
from gpuserve.specs.batching import Batching
from gpuserve.specs.secret import SecretSpec

__all__ = ["MissingSecretError", "ModelHooks", "ServerRuntime", "require_runtime", "settle"]


class MissingSecretError(GpuserveError, LookupError):
    """A secret does not bring a key that the server needs; the message names both."""


class ModelHooks(Protocol):
    """What the runtime calls on a user's server."""

    def load(self) -> None:
        """Load the model."""

    def to_device(self) -> None:
        """Move it to the device."""

    def warm_up(self) -> None:
        """Run it once."""

    def unload(self) -> None:
        """Leave in order."""

    def cost(self, item: Any) -> float:
        """What an item adds to a batch."""


BatchFunction = Callable[[list[Any]], Sequence[Any]]
StreamFunction = Callable[[Any], Generator[Any]]
_END = object()


def input_adapter(annotation: Any) -> TypeAdapter[Any]:
    """What checks items of this annotation: pydantic's rules, strictly; isinstance where it has none."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model, which has a configuration of its own


class ServerRuntime:
    """Runs one server: its hooks in order, then its batched methods.

    Args:
        server: The user's instance.
        methods: Its batched methods, by name, bound.
        streams: Its streaming methods, by name, bound.
        inputs: The annotation of one item of each.
        in_thread: Whether the model runs in a thread of its own, so that the loop stays free; else in
            the caller's, where a debugger is at home.
        outlet: Told what happened, e.g. what the start was made of; nobody is unless given.
    """

    def __init__(
        self,
        server: ModelHooks,
        *,
        name: str,
        methods: Mapping[str, BatchFunction],
        inputs: Mapping[str, Any],
        batching: Batching,
        streams: Mapping[str, StreamFunction] | None = None,
        secrets: Iterable[SecretSpec] = (),
        in_thread: bool = True,
        outlet: Outlet | None = None,
    ) -> None:
        self.name = name
        self._on_event = outlet.event if outlet is not None else _ignore
        self.ready = False
        self.started_in_s: dict[str, float] = {}
        self._server = server
        self._secrets = tuple(secrets)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpuserve-model") if in_thread else None
        self._streams = dict(streams or {})
        self.batch_observers: list[Callable[[str, BatchRecord], None]] = []
        self.request_observers: list[Callable[[RequestRecord], None]] = []
        if outlet is not None:
            self.batch_observers += outlet.batch_observers
            self.request_observers += outlet.observers
        self._outlet = outlet
        self._inputs = dict(inputs)
        self._adapters = {method: input_adapter(annotation) for method, annotation in inputs.items()}
        self._batchers: dict[str, Batcher[Any, Any]] = {
            method: Batcher(self._runner(function), batching, server.cost, self._recorder(method))
            for method, function in methods.items()
        }

    async def load(self) -> None:
        """Check the secrets, then load; what a memory snapshot may hold.

        Raises:
            MissingSecretError: If a secret lacks a key that was declared.
        """
        for secret in self._secrets:
            missing = [key for key in secret.required_keys if not os.environ.get(key)]
            if missing:
                self._on_event({"event": "start_failed", "server": self.name, "part": "secrets", "missing": missing})
                raise MissingSecretError(
                    f"the secret {secret.name!r} does not bring {', '.join(missing)}; "
                    f"run: modal secret create {secret.name} {' '.join(f'{key}=…' for key in missing)} --force"
                )
        await self._timed("load", self._server.load)

    async def make_ready(self) -> None:
        """Move to the device and warm up; then serve."""
        await self._timed("to_device", self._server.to_device)
        await self._timed("warm_up", self._server.warm_up)
        self.ready = True
        self._on_event(
            {"event": "ready", "server": self.name, **{f"{key}_s": spent for key, spent in self.started_in_s.items()}}
        )

    async def stop(self) -> None:
        """Answer what waits, then unload."""
        self.ready = False
        await asyncio.gather(*(batcher.aclose() for batcher in self._batchers.values()))
        await self._call(self._server.unload)
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._on_event({"event": "stopped", "server": self.name})
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close)

    async def submit(self, method: str, item: Any, *, key: str = "", timeout_s: float | None = None) -> Any:
        """Answer one item."""
        return await self.submit_checked(method, self._check(method, item), key=key, timeout_s=timeout_s)

    async def submit_checked(self, method: str, checked: Any, *, key: str = "", timeout_s: float | None = None) -> Any:
        """Answer one item that was validated already."""
        return await self._batchers[method].submit(checked, key=key, timeout_s=timeout_s)

    @property
    def batched(self) -> tuple[str, ...]:
        """The names of the batched methods."""
        return tuple(self._batchers)

    @property
    def streaming(self) -> tuple[str, ...]:
        """The names of the streaming methods."""
        return tuple(self._streams)

    async def stream(self, method: str, item: Any) -> AsyncGenerator[Any]:
        """The pieces of an answer; each is made in the model's thread, which runs batches between them.

        Closing it closes the user's generator.
        """
        pieces = self._streams[method](self._check(method, item))
        try:
            while (piece := await self._call(next, pieces, _END)) is not _END:
                yield piece
        finally:
            await self._call(pieces.close)

    def annotation(self, method: str) -> Any:
        """The type of one item of a method."""
        return self._inputs[method]

    async def submit_many(self, method: str, items: Sequence[Any], *, key: str = "") -> list[Any]:
        """Answer items in their order."""
        checked = [self._check(method, item, place) for place, item in enumerate(items)]
        return await self._batchers[method].submit_many(checked, key=key)

    def _check(self, method: str, item: Any, place: int | None = None) -> Any:
        try:
            return self._adapters[method].validate_python(item)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            at = "" if place is None else f" {place}"
            raise RequestError(
                f"item{at} of {self.name}.{method}{f' at {where}' if where else ''}: {first['msg']}; "
                f"got {type(first['input']).__name__}",
                code="invalid_input",
                status=422,
            ) from None

    def waiting(self, method: str) -> int:
        """Items that wait in a method's queue."""
        return len(self._batchers[method])

    def _recorder(self, method: str) -> Callable[[BatchRecord], None]:
        def told(record: BatchRecord) -> None:
            for tell in self.batch_observers:
                tell(method, record)
            if record.failed and record.size == 1:
                event = {"event": "item_failed", "server": self.name, "method": method, "error": record.fault}
                self._on_event(event)

        return told

    def _runner(self, function: BatchFunction) -> Callable[[list[Any]], Any]:
        async def run(batch: list[Any]) -> Sequence[Any]:
            answers: Sequence[Any] = await self._call(function, batch)
            return answers

        return run

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._thread is None:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def _timed(self, part: str, hook: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            await self._call(hook)
        except Exception as error:
            self._on_event({"event": "start_failed", "server": self.name, "part": part, "error": repr(error)[:500]})
            raise
        self.started_in_s[part] = round(time.monotonic() - begun, 3)


def _ignore(_event: dict[str, Any]) -> None:
    """Nobody reads the log of a server in one's own process."""


def settle() -> None:
    """Take what the start has made out of the garbage collector's rounds, at the end of a container's start.

    It is there to stay, and going through it again and again holds every request up: for 50 ms at a time, as measured
    with a no-op model.
    """
    gc.collect()
    gc.freeze()


def require_runtime(runtime: ServerRuntime | None, name: str) -> ServerRuntime:
    """The runtime of a started server.

    Raises:
        EngineError: If the server was not started by a container or by `.local()`.
    """
    if runtime is None:
        raise EngineError(f"{name} is not started; call it through a registered class, or with {name}.local()")
    return runtime
