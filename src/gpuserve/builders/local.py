"""A server in this process: for tests, notebooks and the debugger."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from gpuserve.builders.batched import BatchedMethod, batched
from gpuserve.builders.server import Marker, WarmModelServer, declaration_of, item_annotation, served_methods
from gpuserve.builders.streaming import StreamingMethod, streaming
from gpuserve.exceptions import EngineError
from gpuserve.runtime.server import ServerRuntime, require_runtime
from gpuserve.runtime.telemetry.outlet import Outlet
from gpuserve.specs.secret import SecretSpec

__all__ = ["BoundMethod", "BoundStream", "LocalServer", "bound", "runtime_for"]

ServerT = TypeVar("ServerT", bound=WarmModelServer)


def runtime_for(server: WarmModelServer, *, in_thread: bool) -> ServerRuntime:
    """The runtime of an instance, as its class declares it."""
    cls = type(server)
    markers = served_methods(cls)
    declaration = declaration_of(cls)
    wanted = [one for one in declaration.all_secrets if isinstance(one, SecretSpec)]
    return ServerRuntime(
        server,
        name=cls.__name__,
        methods={name: one.function.__get__(server) for name, one in markers.items() if isinstance(one, batched)},
        streams={name: one.function.__get__(server) for name, one in markers.items() if isinstance(one, streaming)},
        inputs={name: item_annotation(cls, marker) for name, marker in markers.items()},
        batching=declaration.batching,
        secrets=wanted,
        in_thread=in_thread,
        outlet=Outlet(cls.__name__, declaration.telemetry, wanted) if in_thread else None,
    )


class LocalServer(Generic[ServerT]):
    """Runs a server in this process while the ``with`` block lasts."""

    def __init__(self, cls: type[ServerT], parameters: dict[str, Any]) -> None:
        self._cls = cls
        self._parameters = parameters
        self._server: ServerT | None = None
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> ServerT:
        """Load and warm up; the value is the server itself."""
        server = self._cls.__new__(self._cls)
        for name, value in self._parameters.items():
            setattr(server, name, value)
        runtime = runtime_for(server, in_thread=False)
        server._gpuserve_runtime = runtime
        server.__dict__["_gpuserve_loop"] = self._loop
        self._server = server
        self._loop.run_until_complete(runtime.load())
        self._loop.run_until_complete(runtime.make_ready())
        return server

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """Answer what waits and unload."""
        server = self._server
        try:
            if server is not None and server._gpuserve_runtime is not None:
                self._loop.run_until_complete(server._gpuserve_runtime.stop())
        finally:
            self._loop.close()


def bound(server: WarmModelServer, marker: Marker) -> BoundMethod | BoundStream:
    """The callers' face of a method of a server that lives in this process."""
    return BoundStream(server, marker) if isinstance(marker, streaming) else BoundMethod(server, marker)


def _wait(server: WarmModelServer, awaitable: Awaitable[Any], instead: str) -> Any:
    """Wait on the server's own loop; in a container the loop is the caller's, who must await *instead*."""
    loop: asyncio.AbstractEventLoop | None = server.__dict__.get("_gpuserve_loop")
    if loop is None:
        if asyncio.iscoroutine(awaitable):
            awaitable.close()
        require_runtime(server._gpuserve_runtime, type(server).__name__)
        raise EngineError(f"a container cannot wait for itself: write {instead}")
    return loop.run_until_complete(awaitable)


class BoundMethod(BatchedMethod[Any, Any]):
    """A batched method of a server that lives in this process."""

    def __init__(self, server: WarmModelServer, marker: batched[Any, Any, Any]) -> None:
        self._server = server
        self._marker = marker

    @property
    def remote(self) -> _BoundRemote:
        """Answer one item through the queue."""
        return _BoundRemote(self)

    @property
    def map(self) -> _BoundMap:
        """Answer many items through the queue."""
        return _BoundMap(self)

    def local(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Call the method itself."""
        answers: Sequence[Any] = self._marker.function(self._server, list(batch))
        return answers

    async def submit(self, item: Any, *, key: str = "", timeout_s: float | None = None) -> Any:
        """Answer *item* through the queue."""
        return await self.runtime.submit(self._marker.name, item, key=key, timeout_s=timeout_s)

    async def submit_many(self, items: Sequence[Any], *, key: str = "") -> list[Any]:
        """Answer *items* through the queue, in their order."""
        return await self.runtime.submit_many(self._marker.name, items, key=key)

    @property
    def runtime(self) -> ServerRuntime:
        """What runs the server.

        Raises:
            EngineError: If it is not started.
        """
        return require_runtime(self._server._gpuserve_runtime, type(self._server).__name__)

    def run(self, awaitable: Any) -> Any:
        """Wait for *awaitable* on the server's own loop.

        Raises:
            EngineError: In a container, where the loop is the caller's: ``await`` there instead.
        """
        return _wait(self._server, awaitable, f"await self.{self._marker.name}.submit(item)")

    def chunks(self, items: Iterable[Any], chunk: int | None) -> Iterator[list[Any]]:
        """*items*, cut as a map's calls are."""
        size = chunk or declaration_of(type(self._server)).batching.max_batch_size
        iterator = iter(items)
        while part := list(itertools.islice(iterator, size)):
            yield part


class BoundStream(StreamingMethod[Any, Any]):
    """A streaming method of a server that lives in this process."""

    def __init__(self, server: WarmModelServer, marker: streaming[Any, Any, Any]) -> None:
        self._server = server
        self._marker = marker

    @property
    def remote_gen(self) -> _BoundGenerator:
        """The pieces, as a caller gets them."""
        return _BoundGenerator(self)

    def local(self, item: Any) -> Iterator[Any]:
        """Call the method itself."""
        pieces: Iterator[Any] = self._marker.function(self._server, item)
        return pieces

    def submit(self, item: Any) -> AsyncIterator[Any]:
        """The pieces, made in the model's own thread."""
        runtime = require_runtime(self._server._gpuserve_runtime, type(self._server).__name__)
        return runtime.stream(self._marker.name, item)

    def run(self, awaitable: Awaitable[Any]) -> Any:
        """Wait for *awaitable* on the server's own loop."""
        return _wait(self._server, awaitable, f"async for piece in self.{self._marker.name}.submit(item)")


class _BoundGenerator:
    def __init__(self, method: BoundStream) -> None:
        self._method = method

    def __call__(self, item: Any, /) -> Iterator[Any]:
        pieces: Any = self._method.submit(item)
        try:
            while (piece := self._method.run(anext(pieces, _END))) is not _END:
                yield piece
        finally:
            self._method.run(pieces.aclose())

    def aio(self, item: Any, /) -> AsyncIterator[Any]:
        return self._method.submit(item)


_END = object()


class _BoundRemote:
    def __init__(self, method: BoundMethod) -> None:
        self._method = method

    def __call__(self, item: Any, /) -> Any:
        return self._method.run(self._method.submit(item))

    async def aio(self, item: Any, /) -> Any:
        return await self._method.submit(item)


class _BoundMap:
    def __init__(self, method: BoundMethod) -> None:
        self._method = method

    def __call__(self, items: Iterable[Any], /, *, chunk: int | None = None) -> Iterator[Any]:
        for part in self._method.chunks(items, chunk):
            yield from self._method.run(self._method.submit_many(part))

    async def aio(self, items: Iterable[Any], /, *, chunk: int | None = None) -> AsyncIterator[Any]:
        for part in self._method.chunks(items, chunk):
            for answer in await self._method.submit_many(part):
                yield answer
