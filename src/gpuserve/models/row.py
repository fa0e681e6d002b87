"""A row of sequences on its device, and the parts of it that attention and pooling take at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpuserve.runtime.packing import Group, Pack

__all__ = ["Part", "Row"]

# Tokens that a part has at most once it is padded: enough to fill a GPU, and few enough that most parts are of like
# lengths, for a row has its shortest sequences first.
_PADDED_TOKENS = 32_768


@dataclass(frozen=True, slots=True)
class Part:
    """Some sequences of a row, side by side.

    Attributes:
        start: The first token's place in the row.
        end: The place after the last.
        count: How many sequences.
        length: Tokens in the longest.
        places: Where each token of the padded batch ``(B, L)`` comes from, counted from *start*; ``None`` where all are
            of one length.
        inside: What of the padded batch is no padding, ``(B, L)``.
        back: Where each token is in the padded batch's ``B · L``.
    """

    start: int
    end: int
    count: int
    length: int
    places: torch.Tensor | None = None
    inside: torch.Tensor | None = None
    back: torch.Tensor | None = None

    @classmethod
    def of(cls, groups: Sequence[Group], device: torch.device) -> Part:
        """The sequences of *groups*, which stand side by side."""
        first, last = groups[0], groups[-1]
        count, longest = sum(one.count for one in groups), last.length
        if len(groups) == 1:
            return cls(first.start, last.end, count, longest)
        lengths = np.repeat([one.length for one in groups], [one.count for one in groups])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        columns = np.arange(longest)
        inside = columns < lengths[:, None]
        places = np.where(inside, starts[:, None] + columns, starts[:, None])
        back = np.flatnonzero(inside)
        return cls(
            first.start, last.end, count, longest,
            *(torch.from_numpy(one).to(device, non_blocking=True) for one in (places, inside, back)),
        )  # fmt: skip

    @property
    def mask(self) -> torch.Tensor | None:
        """Which keys each query may see, ``(B, 1, 1, L)``; ``None``: all."""
        return None if self.inside is None else self.inside[:, None, None, :]

    def spread(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(H, T, D)`` as a batch ``(B, H, L, D)``."""
        heads, _, width = tokens.shape
        if self.places is None:
            return tokens.view(heads, self.count, self.length, width).transpose(0, 1)
        return tokens.transpose(0, 1)[self.places].transpose(1, 2)

    def gather(self, batch: torch.Tensor) -> torch.Tensor:
        """``(B, H, L, D)`` as tokens ``(T, H, D)``."""
        _, heads, _, width = batch.shape
        flat = batch.transpose(1, 2).reshape(-1, heads, width)
        return flat if self.back is None else flat[self.back]

    def batch(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(T, D)`` as a batch ``(B, L, D)``, and the mask ``(B, L)`` that a pooling takes."""
        if self.places is None or self.inside is None:
            whole = tokens.view(self.count, self.length, -1)
            return whole, torch.ones(whole.shape[:2], dtype=torch.long, device=tokens.device)
        return tokens[self.places], self.inside.long()


@dataclass(frozen=True, slots=True)
class Row:
    """A row on its device.

    Attributes:
        parts: The row, from its start to its end.
        longest: Tokens in its longest sequence.
        offsets: Where each sequence begins, and the last ends, ``(B + 1,)`` in int32, for kernels of variable length;
            ``None`` where attention runs over the parts.
    """

    parts: tuple[Part, ...]
    longest: int
    offsets: torch.Tensor | None = None

    @classmethod
    def of(cls, pack: Pack, device: torch.device, *, varlen: bool = False, most: int | None = None) -> Row:
        """*pack* on *device*.

        Args:
            pack: What lies where.
            device: Where it is to be.
            varlen: Whether attention is left to a kernel of variable length.
            most: Padded tokens in a part; by default none on a processor.
        """
        if most is None:
            most = 0 if device.type == "cpu" else _PADDED_TOKENS
        offsets = None
        if varlen:
            starts = [place for one in pack.groups for place in range(one.start, one.end, one.length)]
            offsets = torch.tensor([*starts, pack.tokens], dtype=torch.int32, device=device)
        return cls(
            tuple(Part.of(some, device) for some in _together(pack.groups, most)), pack.groups[-1].length, offsets
        )


def _together(groups: Sequence[Group], most: int) -> list[list[Group]]:
    """Groups that are padded to one length, at most so many tokens of them; a group alone is not padded."""
    found: list[list[Group]] = []
    count = 0
    for group in groups:
        if found and (count + group.count) * group.length <= most:
            found[-1].append(group)
            count += group.count
        else:
            found.append([group])
            count = group.count
    return found
