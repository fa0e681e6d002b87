"""How a server gathers requests into batches."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gpuserve.specs.base import Spec

__all__ = ["Batching"]


class Batching(Spec):
    """How requests are gathered into batches, and how many may wait.

    A batch starts as soon as the model is idle: a lone request never waits for company unless
    ``wait_ms`` says so.

    Examples:
        >>> Batching(max_batch_size=32, max_batch_cost=16384).wait_ms
        0
    """

    max_batch_size: Annotated[int, Field(ge=1, le=65536)] = 32
    """items in a batch at most"""
    max_batch_cost: Annotated[float | None, Field(gt=0)] = None
    """the sum of the items' costs in a batch at most, see `WarmModelServer.cost`"""
    padded: bool = True
    """whether a batch costs its size times its dearest item, as padded tensors do; else the plain sum"""
    wait_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """milliseconds that an idle model waits for a fuller batch"""
    max_queue: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """items that may wait; past it HTTP answers 429 and RPC waits at Modal"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_queue < self.max_batch_size:
            raise ValueError(
                f"max_queue={self.max_queue} is less than max_batch_size={self.max_batch_size}, "
                f"so that no batch could ever be full; raise max_queue to {self.max_batch_size} or more"
            )
        return self
