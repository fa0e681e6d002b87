"""Sequences laid end to end: which go into one row, and where each lies. Pure arithmetic, no torch.

A padded batch computes its longest sequence once an item. A pack computes each token once: the sequences of a pack
stand in one row, those of equal length beside each other, so that attention runs over whole groups without a mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Group", "Pack", "pack"]


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of one length, side by side.

    Attributes:
        start: The first token's place in the row.
        count: How many sequences.
        length: Tokens in each.
    """

    start: int
    count: int
    length: int

    @property
    def end(self) -> int:
        """The place after the last token."""
        return self.start + self.count * self.length


@dataclass(frozen=True, slots=True)
class Pack:
    """One row.

    Attributes:
        order: The sequences' places in what was packed, in the order that they stand in the row.
        groups: The row, from its start to its end.
    """

    order: tuple[int, ...]
    groups: tuple[Group, ...]

    @property
    def tokens(self) -> int:
        """The length of the row."""
        return self.groups[-1].end if self.groups else 0


def pack(lengths: Sequence[int], most_tokens: int) -> list[Pack]:
    """Lay sequences of these lengths into rows of at most *most_tokens*, shortest first.

    A sequence that is longer stands alone in a row of its own.

    Examples:
        >>> [first, second] = pack([3, 2, 3, 2, 8], most_tokens=10)
        >>> first.order, [(group.start, group.count, group.length) for group in first.groups]
        ((1, 3, 0, 2), [(0, 2, 2), (4, 2, 3)])
        >>> second.order, second.tokens
        ((4,), 8)

    Raises:
        ValueError: If *most_tokens* or a length is not at least 1.
    """
    if most_tokens < 1:
        raise ValueError(f"most_tokens={most_tokens} is not allowed: it must be at least 1")
    if any(length < 1 for length in lengths):
        raise ValueError("a sequence without tokens cannot be packed: give each at least 1")
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [Pack(tuple(row), _grouped(row, lengths)) for row in _rows(shortest_first, lengths, most_tokens)]


def _rows(order: Sequence[int], lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    row: list[int] = []
    total = 0
    for place in order:
        if row and total + lengths[place] > most_tokens:
            yield row
            row, total = [], 0
        row.append(place)
        total += lengths[place]
    if row:
        yield row


def _grouped(row: Sequence[int], lengths: Sequence[int]) -> tuple[Group, ...]:
    groups: list[Group] = []
    for place in row:
        length = lengths[place]
        if groups and groups[-1].length == length:
            last = groups[-1]
            groups[-1] = Group(last.start, last.count + 1, length)
        else:
            groups.append(Group(groups[-1].end if groups else 0, 1, length))
    return tuple(groups)
