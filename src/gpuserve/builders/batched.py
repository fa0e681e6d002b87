"""`@gpuserve.batched`: a method that is written for a batch and called with one item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, Self, TypeVar, overload

__all__ = ["BatchedMethod", "RemoteCall", "batched"]

Server = TypeVar("Server")
In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class RemoteCall(Protocol[In_contra, Out_co]):
    """Answers one item, in a container; `.aio` is the same for asyncio."""

    def __call__(self, item: In_contra, /) -> Out_co:
        """Answer *item*."""

    async def aio(self, item: In_contra, /) -> Out_co:
        """Answer *item*, awaited."""


class MapCall(Protocol[In_contra, Out_co]):
    """Answers many items in their order; `.aio` is the same for asyncio."""

    def __call__(self, items: Iterable[In_contra], /, *, chunk: int | None = None) -> Iterator[Out_co]:
        """Answer *items*."""

    def aio(self, items: Iterable[In_contra], /, *, chunk: int | None = None) -> AsyncIterator[Out_co]:
        """Answer *items*, iterated with ``async for``."""


class BatchedMethod(ABC, Generic[In, Out]):
    """What callers see of a batched method.

    The same face is had from a registered class (the calls run in containers), from
    `WarmModelServer.local` (they run in this process), and, in a container, from ``self``.
    """

    @property
    @abstractmethod
    def remote(self) -> RemoteCall[In, Out]:
        """Answer one item: ``server.predict.remote(item)``, or ``await server.predict.remote.aio(item)``."""

    @property
    @abstractmethod
    def map(self) -> MapCall[In, Out]:
        """Answer many items in their order: ``server.predict.map(items, chunk=256)``.

        ``chunk`` items travel in one call; by default as many as a batch holds. The items are read as
        they are needed, and the answers come as they are ready.
        """

    @abstractmethod
    def local(self, batch: Sequence[In]) -> Sequence[Out]:
        """Call the method itself on a whole batch, in this process, without the queue."""

    @abstractmethod
    async def submit(self, item: In, *, key: str = "", timeout_s: float | None = None) -> Out:
        """In the container: answer *item* through the server's queue, beside everyone else's.

        Raises:
            QueueFullError: If too many wait already.
            DeadlineError: If it was not begun within *timeout_s*.
        """

    @abstractmethod
    async def submit_many(self, items: Sequence[In], *, key: str = "") -> list[Out]:
        """In the container: answer *items*, in their order, through the server's queue."""


class batched(Generic[Server, In, Out]):  # noqa: N801 (a decorator)
    """Mark a method that answers a whole batch: ``list[In]`` in, one ``Out`` an item out, in order.

    Callers send single items; the server gathers them. The annotations are the contract: they check
    what comes in over RPC and HTTP, and type the callers' side.

    Examples:
        >>> import gpuserve
        >>> class Lengths(gpuserve.WarmModelServer):
        ...     @gpuserve.batched
        ...     def predict(self, batch: list[str]) -> list[int]:
        ...         return [len(text) for text in batch]
        >>> with Lengths.local() as server:
        ...     server.predict.remote("abc")
        3
    """

    def __init__(self, function: Callable[[Server, list[In]], Sequence[Out]]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> BatchedMethod[In, Out]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """The marker itself on the class; the callers' face on an instance."""
        if instance is None:
            return self
        return instance._gpuserve_bind(self)
