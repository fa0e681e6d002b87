"""A set of what was seen, in which each item is new to exactly one of all who ask."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gpuserve.runtime.state.entries import Entries, Key, digest_of, entries_of

__all__ = ["SeenSet"]

_AT_ONCE = 16
"""Round trips under way together in `SeenSet.add_all`."""


class SeenSet:
    """A set of items in which each is new to exactly one of all who ask, for de-duplication in maps.

    *Consistency.* `add` is one atomic store-unless-there. Of all callers in all containers one is told that the item is
    new; an answer that was lost on the way and asked for again is the same. Who was told so and dies before it did its
    work has still taken the item: with ``by=`` it gets the item again when it comes back under the same name, e.g.
    ``by=modal.current_input_id()``, which a retried input keeps.

    *Life.* An item that nobody asks for in seven days is forgotten, and then new again. Asking begins the seven days
    anew. So this keeps a run from doing work twice; a record of what was ever done belongs into a database or volume.

    Args:
        name: All that give the same name share the set; up to 47 letters, digits, dashes, dots and underscores.
        entries: Where it is kept, in place of the ``modal.Dict`` ``gpuserve-seen-NAME``.

    Raises:
        DeclarationError: If the name is none.

    Examples:
        >>> from gpuserve.runtime.state import MemoryEntries
        >>> seen = SeenSet("documents", entries=MemoryEntries())
        >>> seen.add("a"), seen.add("b"), seen.add("a"), "a" in seen
        (True, True, False, True)
        >>> seen.add("c", by="input 7"), seen.add("c", by="input 7"), seen.add("c", by="input 8")
        (True, True, False)
        >>> seen.add_all(["b", "d", "d"])
        [False, True, False]
    """

    def __init__(self, name: str, *, entries: Entries | None = None, clock: Callable[[], float] = time.time) -> None:
        self._entries = entries_of("seen", name, entries)
        self._declared = name, entries
        self._clock = clock

    def add(self, item: Key, *, by: str | None = None) -> bool:
        """Whether *item* is new; one round trip where it is, two where it is not.

        Args:
            item: A str, bytes or int; its sha256 is what is stored.
            by: Whoever asks; told that it is new again, if it was when the same asked before.

        Raises:
            TypeError: If *item* is none of the three.
        """
        key, claim = digest_of(item), by if by is not None else secrets.token_hex(8)
        if self._entries.put_new(key, (claim, self._clock())):
            return True
        # Modal's client sends again what was not answered: the entry that is in the way may be our own
        found = self._entries.get(key)
        return found is not None and bool(found[0] == claim)

    def add_all(self, items: Iterable[Key], *, by: str | None = None) -> list[bool]:
        """`add` for each, several at a time; an item that is there twice is new once."""
        wanted: Sequence[Key] = list(items)
        first = dict.fromkeys(wanted)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="gpuserve-seen") as threads:
            new = dict(zip(first, threads.map(lambda item: self.add(item, by=by), first), strict=True))
        return [new.pop(item, False) for item in wanted]

    def discard(self, item: Key) -> None:
        """Forget *item*, e.g. where its work failed for good: it is new to whoever asks next."""
        self._entries.remove(digest_of(item))

    def __contains__(self, item: Key) -> bool:
        """Whether *item* was seen; it may be by the time that the answer is here."""
        return self._entries.get(digest_of(item)) is not None

    def __reduce__(self) -> tuple[Callable[..., SeenSet], tuple[str, Entries | None]]:
        """By name, since a notebook's functions take what they use along."""
        return _seen_set, self._declared


def _seen_set(name: str, entries: Entries | None) -> SeenSet:
    return SeenSet(name, entries=entries)
