"""`@gpuserve.streaming`: a method that answers one item piece by piece."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar, overload

__all__ = ["StreamCall", "StreamingMethod", "streaming"]

Server = TypeVar("Server")
In = TypeVar("In")
Out = TypeVar("Out")
In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class StreamCall(Protocol[In_contra, Out_co]):
    """Answers one item piece by piece, in a container; `.aio` is the same for asyncio."""

    def __call__(self, item: In_contra, /) -> Iterator[Out_co]:
        """The pieces of the answer, as they are made."""

    def aio(self, item: In_contra, /) -> AsyncIterator[Out_co]:
        """The pieces, iterated with ``async for``."""


class StreamingMethod(ABC, Generic[In, Out]):
    """What callers see of a streaming method, from a registered class, `.local()` and inside the container alike."""

    @property
    @abstractmethod
    def remote_gen(self) -> StreamCall[In, Out]:
        """The pieces of the answer: ``for piece in server.generate.remote_gen(item)``."""

    @abstractmethod
    def local(self, item: In) -> Iterator[Out]:
        """Call the method itself, in this process."""

    @abstractmethod
    def submit(self, item: In) -> AsyncIterator[Out]:
        """In the container: the pieces, made in the model's own thread; for the server's own routes."""


class streaming(Generic[Server, In, Out]):  # noqa: N801 (a decorator)
    """Mark a generator that answers one item piece by piece.

    It runs in the model's own thread, a piece at a time, between batches; a caller who leaves closes it. Over HTTP it
    is ``POST /NAME``, as server-sent events; one that is named ``stream`` is ``POST /predict/stream`` too.

    Examples:
        >>> from collections.abc import Iterator
        >>> import gpuserve
        >>> class Spell(gpuserve.WarmModelServer):
        ...     @gpuserve.streaming
        ...     def spell(self, word: str) -> Iterator[str]:
        ...         yield from word
        >>> with Spell.local() as server:
        ...     list(server.spell.remote_gen("abc"))
        ['a', 'b', 'c']
    """

    def __init__(self, function: Callable[[Server, In], Iterator[Out]]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> StreamingMethod[In, Out]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        """The marker itself on the class; the callers' face on an instance."""
        if instance is None:
            return self
        return instance._gpuserve_bind(self)
