"""Ready-made servers on the builders: subclass one, say which model, register it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuserve.models.embeddings import EmbeddingServer as EmbeddingServer

__all__ = ["EmbeddingServer"]


def __getattr__(name: str) -> Any:
    """Load a server on first use."""
    if name in __all__:
        from gpuserve.models import embeddings

        return getattr(embeddings, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
