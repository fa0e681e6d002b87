"""Adapters of one model: loaded when a request first names them, the least recently used given up for another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpuserve.exceptions import RequestError

__all__ = ["AdapterHooks", "Adapters"]


class AdapterHooks(Protocol):
    """What is called on a user's server, in the model's own thread."""

    def adapter_of(self, item: Any) -> str | None:
        """The adapter that an item asks for; ``None`` for the model as it is."""

    def load_adapter(self, name: str, path: Path) -> None:
        """Add the adapter to the model."""

    def use_adapter(self, name: str | None) -> None:
        """Run with this one from now on."""

    def unload_adapter(self, name: str) -> None:
        """Take it out of the model."""


class Adapters:
    """Which adapters there are, which are loaded, and which is in use.

    Args:
        hooks: The user's server.
        folders: By name, what gives the verified folder of each.
        most: How many stay loaded.
    """

    def __init__(self, hooks: AdapterHooks, folders: Mapping[str, Callable[[], Path]], most: int) -> None:
        self._hooks, self._folders, self._most = hooks, dict(folders), most
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._in_use: str | None = None

    def asked_by(self, item: Any) -> str | None:
        """The adapter that *item* asks for.

        Raises:
            RequestError: If there is none of that name, with those that there are.
        """
        name = self._hooks.adapter_of(item)
        if name is not None and name not in self._folders:
            raise RequestError(
                f"there is no adapter {str(name)[:100]!r}; there are: {', '.join(sorted(self._folders))}",
                "unknown_adapter",
                404,
            )
        return name

    def use(self, name: str | None) -> None:
        """Have the model run with it, loaded first where it is not.

        Raises:
            WeightsError: If it is not there, or not to be trusted.
        """
        if name is not None:
            self.hold((name,))
        if name != self._in_use:
            self._hooks.use_adapter(name)
            self._in_use = name

    def hold(self, names: Sequence[str]) -> None:
        """Load those that are not, and give up the least recently used of the others for them.

        Raises:
            WeightsError: If one is not there, or not to be trusted.
        """
        for name in names:
            if name in self._loaded:
                self._loaded.move_to_end(name)
        for name in dict.fromkeys(names):
            if name in self._loaded:
                continue
            folder = self._folders[name]()
            while len(self._loaded) >= self._most:
                self._give_up(next(iter(self._loaded)))
            self._hooks.load_adapter(name, folder)
            self._loaded[name] = None

    def parts(self, batch: Sequence[Any]) -> Iterator[list[int]]:
        """The places of a mixed batch, cut so that no part needs more adapters than stay loaded."""
        part: list[int] = []
        needed: set[str] = set()
        for place, item in enumerate(batch):
            name = self.asked_by(item)
            if name is not None and name not in needed and len(needed) == self._most:
                yield part
                part, needed = [], set()
            part.append(place)
            needed |= {name} if name is not None else set()
        if part:
            yield part

    def run_mixed(self, function: Callable[[list[Any]], Sequence[Any]], batch: list[Any]) -> Sequence[Any]:
        """Run a batch whose items name several adapters: the model tells them apart item by item."""
        answers: list[Any] = []
        for places in self.parts(batch):
            part = [batch[place] for place in places]
            self.hold([name for name in map(self.asked_by, part) if name is not None])
            answers += function(part)
        return answers

    def run_with(self, name: str | None, function: Callable[..., Any], *args: Any) -> Any:
        """Call *function* while the model runs with one adapter."""
        self.use(name)
        return function(*args)

    def _give_up(self, name: str) -> None:
        if self._in_use == name:
            self._hooks.use_adapter(None)
            self._in_use = None
        self._hooks.unload_adapter(name)
        del self._loaded[name]
