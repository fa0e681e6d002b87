"""The local engine: Modal's control plane on this machine, for the real client and runtime.

It runs any Modal app, also one that never heard of gpuserve, and knows nothing of the builders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuserve.engine.server import LocalEngine, default_home

__all__ = ["LocalEngine", "default_home"]


def __getattr__(name: str) -> Any:
    """Load the engine on first use: the container's own processes import this package too."""
    if name in __all__:
        from gpuserve.engine import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
