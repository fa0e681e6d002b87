"""How many containers, and for how long."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gpuserve.specs.base import Spec

__all__ = ["Scaling"]


class Scaling(Spec):
    """How many containers may run, and how long an idle one stays; Modal's own words.

    The defaults are the cheapest that serve: none while nobody calls, never more than one.

    Examples:
        >>> Scaling(max_containers=4, scaledown_window=300).max_containers
        4

    Source:
        Ranges: Modal's guide to scaling; ``scaledown_window`` is 2 s to 20 min there.
    """

    min_containers: Annotated[int, Field(ge=0, le=1000)] = 0
    """containers kept warm while nobody calls; each costs its full price every hour"""
    max_containers: Annotated[int, Field(ge=1, le=1000)] = 1
    """the cap; what comes past it waits"""
    buffer_containers: Annotated[int, Field(ge=0, le=1000)] = 0
    """idle containers kept ahead while others are busy"""
    scaledown_window: Annotated[int, Field(ge=2, le=1200)] = 60
    """seconds that an idle container stays"""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.min_containers > self.max_containers:
            raise ValueError(
                f"min_containers={self.min_containers} is more than max_containers={self.max_containers}; "
                f"raise max_containers or lower min_containers"
            )
        return self
