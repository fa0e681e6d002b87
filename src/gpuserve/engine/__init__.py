"""The local engine: Modal's control plane on this machine, for the real client and runtime.

It runs any Modal app, also one that never heard of gpuserve, and knows nothing of the builders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpuserve.engine.home import default_home
    from gpuserve.engine.server import LocalEngine

__all__ = ["LocalEngine", "default_home"]


def __getattr__(name: str) -> Any:
    """Load the engine on first use: the container's own processes import this package too."""
    if name == "LocalEngine":
        from gpuserve.engine.server import LocalEngine

        return LocalEngine
    if name == "default_home":
        from gpuserve.engine.home import default_home

        return default_home
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
