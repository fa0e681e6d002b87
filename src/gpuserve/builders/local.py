"""A server in this process: for tests, notebooks and the debugger."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Generic, TypeVar

from gpuserve.builders.batched import BatchedMethod, batched
from gpuserve.builders.server import Marker, WarmModelServer, declaration_of, item_annotation, served_methods
from gpuserve.builders.streaming import StreamingMethod, streaming
from gpuserve.builders.weights import VolumeWeightsCache
from gpuserve.exceptions import EngineError
from gpuserve.runtime.adapters import Adapters
from gpuserve.runtime.caller import CallerLoop
from gpuserve.runtime.server import ServerRuntime, require_runtime
from gpuserve.runtime.start import StartLimits
from gpuserve.runtime.telemetry.outlet import Outlet
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.weights import WeightsDeclaration

__all__ = ["BoundMethod", "BoundStream", "LocalServer", "bound", "runtime_for", "start_here"]

ServerT = TypeVar("ServerT", bound=WarmModelServer)


def runtime_for(server: WarmModelServer, executor: Executor | None = None) -> ServerRuntime:
    """The runtime of an instance, as its class declares it.

    Args:
        server: The instance.
        executor: Where its methods run; a thread of their own, as in a container, unless given.
    """
    cls = type(server)
    markers = served_methods(cls)
    declaration = declaration_of(cls)
    wanted = [one for one in declaration.all_secrets if isinstance(one, SecretSpec)]
    folders = {name: _reader(cache).path for name, cache in declaration.adapters.items()}
    return ServerRuntime(
        server,
        name=cls.__name__,
        methods={name: one.function.__get__(server) for name, one in markers.items() if isinstance(one, batched)},
        streams={name: one.function.__get__(server) for name, one in markers.items() if isinstance(one, streaming)},
        inputs={name: item_annotation(cls, marker) for name, marker in markers.items()},
        batching=declaration.batching,
        secrets=wanted,
        executor=executor,
        outlet=Outlet(cls.__name__, declaration.telemetry, wanted) if executor is None else None,
        weights={name: _reader(cache).begin for name, cache in declaration.weights.items()},
        limits=StartLimits(declaration.startup_timeout_s, declaration.scaling.scaledown_window),
        kept_in_memory=declaration.memory_snapshot and executor is None,
        adapters=Adapters(server, folders, declaration.max_loaded_adapters) if folders else None,
        mixed_adapters=declaration.mixed_adapters,
    )


def _reader(cache: WeightsDeclaration) -> VolumeWeightsCache:
    if not isinstance(cache, VolumeWeightsCache):
        raise EngineError(f"{cache!r} says how weights are fetched, not how they are read; use VolumeWeightsCache")
    return cache


def start_here(server: WarmModelServer, loop: CallerLoop) -> None:
    """Start an instance in this process; its calls are waited for on *loop*."""
    runtime = runtime_for(server, loop)
    server._gpuserve_runtime = runtime
    server.__dict__["_gpuserve_loop"] = loop
    loop.wait(runtime.load())
    loop.wait(runtime.make_ready())


class LocalServer(Generic[ServerT]):
    """Runs a server in this process while the ``with`` block lasts."""

    def __init__(self, cls: type[ServerT], parameters: dict[str, Any]) -> None:
        self._cls = cls
        self._parameters = parameters
        self._server: ServerT | None = None
        self._loop: CallerLoop | None = None

    def __enter__(self) -> ServerT:
        """Load and warm up; the value is the server itself."""
        server = self._cls.__new__(self._cls)
        for name, value in self._parameters.items():
            setattr(server, name, value)
        loop = CallerLoop()
        try:
            start_here(server, loop)
        except BaseException:
            loop.close()
            raise
        self._server, self._loop = server, loop
        return server

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """Answer what waits and unload."""
        server, loop = self._server, self._loop
        if server is None or server._gpuserve_runtime is None or loop is None:
            return
        try:
            loop.wait(server._gpuserve_runtime.stop())
        finally:
            loop.close()
            self._server = self._loop = None


def bound(server: WarmModelServer, marker: Marker) -> BoundMethod | BoundStream:
    """The callers' face of a method of a server that lives in this process."""
    return BoundStream(server, marker) if isinstance(marker, streaming) else BoundMethod(server, marker)


def _wait(server: WarmModelServer, coroutine: Coroutine[Any, Any, Any], instead: str) -> Any:
    """Wait on the server's own loop; in a container the loop is the caller's, who must await *instead*."""
    loop: CallerLoop | None = server.__dict__.get("_gpuserve_loop")
    if loop is None:
        coroutine.close()
        require_runtime(server._gpuserve_runtime, type(server).__name__)
        raise EngineError(f"a container cannot wait for itself: write {instead}")
    return loop.wait(coroutine)


async def _awaited(server: WarmModelServer, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await on the server's own loop, which in a container is the caller's."""
    loop: CallerLoop | None = server.__dict__.get("_gpuserve_loop")
    return await (coroutine if loop is None or loop.is_here else loop.wait_async(coroutine))


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
        runtime = self.runtime
        return await _awaited(self._server, runtime.submit(self._marker.name, item, key=key, timeout_s=timeout_s))

    async def submit_many(self, items: Sequence[Any], *, key: str = "") -> list[Any]:
        """Answer *items* through the queue, in their order."""
        runtime = self.runtime
        answers: list[Any] = await _awaited(self._server, runtime.submit_many(self._marker.name, items, key=key))
        return answers

    @property
    def runtime(self) -> ServerRuntime:
        """What runs the server.

        Raises:
            EngineError: If it is not started.
        """
        return require_runtime(self._server._gpuserve_runtime, type(self._server).__name__)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for *coroutine* on the server's own loop.

        Raises:
            EngineError: In a container, where the loop is the caller's: ``await`` there instead.
        """
        return _wait(self._server, coroutine, f"await self.{self._marker.name}.submit(item)")

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

    async def submit(self, item: Any) -> AsyncIterator[Any]:
        """The pieces, made in the model's own thread."""
        pieces = self.pieces(item)
        try:
            while (piece := await _awaited(self._server, _next(pieces))) is not _END:
                yield piece
        finally:
            await _awaited(self._server, pieces.aclose())

    def pieces(self, item: Any) -> AsyncGenerator[Any]:
        """The pieces on the server's own loop."""
        runtime = require_runtime(self._server._gpuserve_runtime, type(self._server).__name__)
        return runtime.stream(self._marker.name, item)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for *coroutine* on the server's own loop."""
        return _wait(self._server, coroutine, f"async for piece in self.{self._marker.name}.submit(item)")


class _BoundGenerator:
    def __init__(self, method: BoundStream) -> None:
        self._method = method

    def __call__(self, item: Any, /) -> Iterator[Any]:
        pieces = self._method.pieces(item)
        try:
            while (piece := self._method.run(_next(pieces))) is not _END:
                yield piece
        finally:
            self._method.run(pieces.aclose())

    def aio(self, item: Any, /) -> AsyncIterator[Any]:
        return self._method.submit(item)


_END = object()


async def _next(pieces: AsyncGenerator[Any]) -> Any:
    return await anext(pieces, _END)


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
