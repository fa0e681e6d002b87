"""A number that many containers add to."""

from __future__ import annotations

import time
from collections.abc import Callable

from gpuserve.runtime.state.entries import Entries, Key, digest_of, entries_of
from gpuserve.runtime.state.shares import Shares, add_up

__all__ = ["Counter"]

_ONCE = "once/"


class Counter:
    """A number that many containers add to, and that anyone reads.

    *Consistency.* What was added is stored when `add` returns, and no concurrent addition undoes it: each process has
    an entry of its own, and `value` adds them up. A read has every addition that returned before it began, and may
    have some that were under way. An input that Modal runs again adds again; with ``once=`` it does not.

    *Life.* An entry that nobody reads or writes for seven days vanishes, and its share of the sum with it. Call `touch`
    every few days where the sum must live longer. Each writer has an entry, so that a read costs more the more
    containers there were. There is no way back to 0, since a warm container writes its sum again: a new run takes a
    new name.

    Args:
        name: All that give the same name share the counter; up to 47 letters, digits, dashes, dots and underscores.
        entries: Where it is kept, in place of the ``modal.Dict`` ``gpuserve-counter-NAME``.

    Raises:
        DeclarationError: If the name is none.

    Examples:
        >>> from gpuserve.runtime.state import MemoryEntries
        >>> tokens = Counter("tokens", entries=MemoryEntries())
        >>> tokens.add(120); tokens.add(80, once="document-7"); tokens.add(80, once="document-7")
        >>> tokens.value()
        200
    """

    def __init__(self, name: str, *, entries: Entries | None = None, clock: Callable[[], float] = time.time) -> None:
        self._entries = entries_of("counter", name, entries)
        self._declared = name, entries
        self._shares = Shares(self._entries, 1, clock=clock)

    def add(self, amount: int = 1, *, once: Key | None = None) -> None:
        """Add *amount*, which may be negative; one round trip.

        Args:
            amount: A whole number.
            once: A name for this addition: of all with the same name, in any process, the first one counts.

        Raises:
            TypeError: If *amount* is not a whole number.
        """
        if isinstance(amount, bool) or not isinstance(amount, int):
            raise TypeError(f"amount is a whole number, got {amount!r}; count in smaller units, e.g. milliseconds")
        if once is None:
            self._shares.add((amount,))
        else:
            self._entries.put_new(_ONCE + digest_of(once), amount)

    def value(self) -> int:
        """The sum of what was added by everybody."""
        once: int = sum(value for key, value in self._entries.items() if key.startswith(_ONCE))
        return once + sum(share.amounts[0] for share in add_up(self._entries))

    def touch(self) -> None:
        """Read each entry by its key, which begins its seven days anew; one round trip an entry."""
        for key, _ in list(self._entries.items()):
            self._entries.get(key)

    def __reduce__(self) -> tuple[Callable[..., Counter], tuple[str, Entries | None]]:
        """By name, since a notebook's functions take what they use along."""
        return _counter, self._declared


def _counter(name: str, entries: Entries | None) -> Counter:
    return Counter(name, entries=entries)
