"""What `register` returns: Modal's class, whose instances know batched and streaming methods."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import modal

from gpuserve.builders.batched import BatchedMethod
from gpuserve.builders.server import Marker
from gpuserve.builders.streaming import StreamingMethod
from gpuserve.exceptions import DeclarationError, RegistrationError
from gpuserve.specs.server import ServerDeclaration

__all__ = [
    "CHUNK",
    "STREAM",
    "HttpHandle",
    "RegisteredHttpServer",
    "RegisteredServer",
    "ServerHandle",
    "served_partial",
]

CHUNK = "_gpuserve_chunk"
STREAM = "_gpuserve_stream"
_END = object()


class RegisteredServer(modal.Cls):
    """A ``modal.Cls`` in all things; calling it gives a `ServerHandle`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A `ServerHandle` of the pool that serves these parameters."""
        return ServerHandle(
            super().__call__(*args, **kwargs),
            self._gpuserve_batched,
            self._gpuserve_streaming,
            self._gpuserve_chunk_size,
        )

    def with_options(self, **options: Any) -> Any:
        """The same class with other resources for the calls made through what this returns; Modal's own method.

        **Each use is a pool of containers of its own, outside the class's cap**: it costs what its own
        ``max_containers`` allows, beside what runs already, and starts cold. Where the class has a budget, both
        together must keep it. An image, ``min_containers``, several GPUs to choose from and time for starting cannot
        be changed so: write another class, or register this one's base again.

        Args:
            options: Modal's: ``gpu`` (one), ``cpu``, ``memory``, ``env``, ``secrets``, ``volumes``, ``retries``,
                ``max_containers``, ``buffer_containers``, ``scaledown_window``, ``timeout``, ``region``, ``cloud``,
                ``routing_region``.

        Raises:
            RegistrationError: If Modal cannot change one of them for a call.
            DeclarationError: If it could cost more than the class's budget.
        """
        declaration: ServerDeclaration = self._gpuserve_declaration
        fixed = sorted(set(options) & {"image", "min_containers", "startup_timeout", "weights", "http", "batching"})
        if fixed or not isinstance(options.get("gpu", ""), str):
            which = ", ".join(fixed) or "a choice of several GPUs"
            raise RegistrationError(
                f"{which} cannot be changed for a call; register a subclass of {self._gpuserve_name}'s base that "
                f"declares it, or pass one gpu as in gpu='H100'"
            )
        given = {name: value for name, value in options.items() if value is not None}
        options_of_pool = {**vars(self).get("_gpuserve_options", {}), **given}  # Modal adds them to those before
        fault = declaration.fault_beside(options_of_pool)
        if fault is not None:
            raise DeclarationError(f"{self._gpuserve_name}.with_options", (fault,))
        variant = self._gpuserve_again(super().with_options(**options))
        variant._gpuserve_options = options_of_pool
        return variant

    def _gpuserve_again(self, variant: Any) -> Any:
        """A variant of this class, with the same face."""
        variant.__class__ = type(self)
        variant.__dict__.update({name: value for name, value in vars(self).items() if name.startswith("_gpuserve_")})
        return variant

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Refuse to be a base class.

        Raises:
            RegistrationError: Always.
        """
        raise _not_a_base(self._gpuserve_name)


class RegisteredHttpServer(modal.Server):
    """A ``modal.Server`` in all things; calling it gives an `HttpHandle`, as calling a class gives its handle."""

    _gpuserve_name: str
    _gpuserve_methods: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Where requests go.

        Raises:
            RegistrationError: If parameters are given; a server has none.
        """
        if args or kwargs:
            raise RegistrationError(
                f"{self._gpuserve_name} is served over HTTP alone (transport='server') and has no parameters; "
                f"take the values from the request, or write transport='asgi' in Http(…)"
            )
        return HttpHandle(self)

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[type, ...]:
        """Refuse to be a base class.

        Raises:
            RegistrationError: Always.
        """
        raise _not_a_base(self._gpuserve_name)


class HttpHandle:
    """A server that is reached over HTTP alone."""

    def __init__(self, server: RegisteredHttpServer) -> None:
        self._server = server

    @property
    def url(self) -> str | None:
        """Where requests go; the same as ``MyServer.get_url()``."""
        address: str | None = self._server.get_url()
        return address

    def __getattr__(self, name: str) -> Any:
        if name in self._server._gpuserve_methods:
            raise RegistrationError(
                f"{self._server._gpuserve_name}.{name} is served over HTTP alone (transport='server'); "
                f"send POST {{url}}/{name}, or write transport='asgi' in Http(…) to call it"
            )
        raise AttributeError(f"{self._server._gpuserve_name} has no {name!r} outside its container")


def _not_a_base(name: str) -> RegistrationError:
    return RegistrationError(
        f"{name} is registered and cannot be subclassed; subclass an unregistered base, and register each leaf"
    )


class _ServedPartial(modal.partial_function.PartialFunction[Any, Any, Any]):
    """Modal's mark of a method, which on an instance is our own method still."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        return instance._gpuserve_bind(self.__dict__["_gpuserve_marker"])


def served_partial(partial: Any, marker: Marker) -> Any:
    """Modal's *partial*, reading as *marker* does on an instance."""
    partial.__class__ = _ServedPartial
    partial._gpuserve_marker = marker
    return partial


class ServerHandle:
    """One pool of containers: batched and streaming methods with our face, everything else as Modal has it."""

    def __init__(self, instance: Any, batched: Sequence[str], streaming: Sequence[str], chunk_size: int) -> None:
        self._instance = instance
        self._batched, self._streaming = frozenset(batched), frozenset(streaming)
        self._chunk_size = chunk_size

    def __getattr__(self, name: str) -> Any:
        if name in self._batched:
            return RemoteMethod(self._instance, name, self._chunk_size)
        if name in self._streaming:
            return RemoteStream(self._instance, name)
        return getattr(self._instance, name)

    @property
    def url(self) -> str | None:
        """Where the HTTP face is; ``None`` for a server without one."""
        address: str | None = self._instance.web.get_web_url()
        return address


class RemoteMethod(BatchedMethod[Any, Any]):
    """A batched method whose calls run in containers."""

    def __init__(self, instance: Any, name: str, chunk_size: int) -> None:
        self._instance = instance
        self.name = name
        self.chunk_size = chunk_size

    @property
    def remote(self) -> Any:
        """Modal's own ``.remote`` of the method, with ``.aio``."""
        return getattr(self._instance, self.name).remote

    @property
    def spawn(self) -> Any:
        """Modal's own ``.spawn`` of the method."""
        return getattr(self._instance, self.name).spawn

    @property
    def map(self) -> _RemoteMap:
        """Many items, ``chunk`` of them a call."""
        return _RemoteMap(self)

    @property
    def chunked(self) -> Any:
        """The hidden Modal method that answers many items."""
        return getattr(self._instance, CHUNK)

    def local(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Call the method itself on an instance in this process, loaded first as Modal loads it."""
        method: BatchedMethod[Any, Any] = getattr(self._instance._gpuserve_loaded(), self.name)
        return method.local(batch)

    async def submit(self, _item: Any, *, key: str = "", timeout_s: float | None = None) -> Any:
        """Refused: it belongs to the inside of a container.

        Raises:
            RegistrationError: Always.
        """
        raise self._outside(f"submit(key={key!r}, timeout_s={timeout_s})", "remote.aio(item)")

    async def submit_many(self, _items: Sequence[Any], *, key: str = "") -> list[Any]:
        """Refused: it belongs to the inside of a container.

        Raises:
            RegistrationError: Always.
        """
        raise self._outside(f"submit_many(key={key!r})", "map.aio(items)")

    def _outside(self, call: str, instead: str) -> RegistrationError:
        return RegistrationError(f"{call} is for the server's own routes; from outside, use {self.name}.{instead}")


class RemoteStream(StreamingMethod[Any, Any]):
    """A streaming method whose calls run in containers."""

    def __init__(self, instance: Any, name: str) -> None:
        self._instance = instance
        self.name = name

    @property
    def remote_gen(self) -> _RemoteGenerator:
        """The pieces, as they are made; who closes the iterator early ends the call as well."""
        return _RemoteGenerator(self)

    @property
    def streamed(self) -> Any:
        """The hidden Modal method whose first piece is the call's own id."""
        return getattr(self._instance, STREAM)

    def local(self, item: Any) -> Iterator[Any]:
        """Call the method itself on an instance in this process, loaded first as Modal loads it."""
        method: StreamingMethod[Any, Any] = getattr(self._instance._gpuserve_loaded(), self.name)
        return method.local(item)

    def submit(self, _item: Any) -> AsyncIterator[Any]:
        """Refused: it belongs to the inside of a container.

        Raises:
            RegistrationError: Always.
        """
        raise RegistrationError(
            f"submit() is for the server's own routes; from outside, use {self.name}.remote_gen.aio(item)"
        )


class _RemoteGenerator:
    """Modal's client says nothing to the container when its iterator is closed, so that it would go on to the end."""

    def __init__(self, method: RemoteStream) -> None:
        self._method = method

    def __call__(self, item: Any, /) -> Iterator[Any]:
        pieces = self._method.streamed.remote_gen(item, method=self._method.name)
        call_id = next(pieces)
        try:
            yield from pieces
        except (GeneratorExit, KeyboardInterrupt):
            modal.FunctionCall.from_id(call_id).cancel()
            raise

    async def aio(self, item: Any, /) -> AsyncIterator[Any]:
        async with aclosing(self._method.streamed.remote_gen.aio(item, method=self._method.name)) as pieces:
            call_id = await anext(pieces)
            try:
                async for piece in pieces:
                    yield piece
            except (GeneratorExit, asyncio.CancelledError):
                await modal.FunctionCall.from_id(call_id).cancel.aio()
                raise


class _RemoteMap:
    def __init__(self, method: RemoteMethod) -> None:
        self._method = method

    def __call__(self, items: Iterable[Any], /, *, chunk: int | None = None) -> Iterator[Any]:
        parts = _parts(items, chunk or self._method.chunk_size)
        for answers in _iterated(lambda: self._method.chunked.map(parts, kwargs={"method": self._method.name})):
            yield from answers

    async def aio(self, items: Iterable[Any], /, *, chunk: int | None = None) -> AsyncIterator[Any]:
        parts = _parts(items, chunk or self._method.chunk_size)
        async for answers in self._method.chunked.map.aio(parts, kwargs={"method": self._method.name}):
            for answer in answers:
                yield answer


def _iterated(mapped: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """The answers of Modal's map, which refuses to be iterated where a loop runs, as in a notebook's cell."""
    if asyncio._get_running_loop() is None:
        yield from mapped()
        return
    with ThreadPoolExecutor(1, thread_name_prefix="gpuserve-map") as beside:
        answers = beside.submit(lambda: iter(mapped())).result()
        while (answer := beside.submit(next, answers, _END).result()) is not _END:
            yield answer


def _parts(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
