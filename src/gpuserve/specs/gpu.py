"""The GPUs that Modal rents, by the names that it knows."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["CATALOGUE", "GpuType", "parse_gpu"]

_NAME = re.compile(r"(?P<name>[A-Za-z0-9-]+?)(?::(?P<count>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class GpuType:
    """One kind of GPU.

    Attributes:
        memory_gib: Memory of one GPU.
        max_count: GPUs that one container may have.
    """

    name: str
    memory_gib: int
    max_count: int = 8


# Source: Modal's guide to GPU acceleration: the names, memory and counts that it lists.
CATALOGUE: dict[str, GpuType] = {
    one.name: one
    for one in (
        GpuType("T4", 16),
        GpuType("L4", 24),
        GpuType("A10", 24, 4),
        GpuType("L40S", 48),
        GpuType("A100-40GB", 40),
        GpuType("A100-80GB", 80),
        GpuType("H100", 80),
        GpuType("H200", 141),
        GpuType("B200", 180),
    )
}
# Names that Modal takes for another: what somebody writes from an older guide still means one thing.
_ALIASES = {"A10G": "A10", "A100": "A100-40GB", "H100!": "H100"}


def parse_gpu(text: str) -> tuple[GpuType, int]:
    """The kind and the count that ``"A100-80GB:2"`` means.

    Raises:
        ValueError: With the known names, if it means none.

    Examples:
        >>> kind, count = parse_gpu("A100-80GB:2")
        >>> (kind.memory_gib, count)
        (80, 2)
    """
    known = ", ".join(CATALOGUE)
    found = _NAME.fullmatch(text.strip())
    kind = None
    if found is not None:
        name = found["name"].upper()
        kind = CATALOGUE.get(_ALIASES.get(name, name))
    if found is None or kind is None:
        raise ValueError(f"gpu={text!r} is not a GPU that Modal has; write one of {known}, with a count as in 'H100:2'")
    count = int(found["count"] or 1)
    if not 1 <= count <= kind.max_count:
        raise ValueError(f"gpu={text!r} asks for {count}; a container has 1 to {kind.max_count} {kind.name}")
    return kind, count
