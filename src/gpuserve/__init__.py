"""gpuserve: builders for GPU work on Modal, and a local engine that runs any Modal app offline.

``import gpuserve`` loads nothing heavy: no torch, no engine, no command line.
"""

from __future__ import annotations

from gpuserve.exceptions import DeclarationError, EngineError, GpuserveError, RequestError, StateError

__all__ = ["DeclarationError", "EngineError", "GpuserveError", "RequestError", "StateError", "__version__"]

__version__ = "0.1.0"
