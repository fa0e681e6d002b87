"""For tests of one's own: the fixture `local_engine` (a pytest plugin), and a proxy that misbehaves as networks do.

The toxics are Toxiproxy's: `Latency`, `Bandwidth`, `SlowClose`, `Timeout`, `ResetPeer`, `Slicer`, `LimitData`, `Down`;
`FaultProxy` applies them between a client and a server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from gpuserve.testing.fault_proxy import FaultProxy
from gpuserve.testing.toxics import (
    Bandwidth,
    Down,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
)

if TYPE_CHECKING:
    from gpuserve.engine import LocalEngine

__all__ = [
    "Bandwidth",
    "Down",
    "FaultProxy",
    "Latency",
    "LimitData",
    "ResetPeer",
    "Slicer",
    "SlowClose",
    "Timeout",
    "Toxic",
    "local_engine",
]


@pytest.fixture
def local_engine() -> Iterator[LocalEngine]:
    """An engine with an empty state, to which this process's modal client is pointed for one test.

    Apps and objects that a module defines work in each test anew, and see nothing of the tests before.
    """
    from gpuserve.engine import LocalEngine

    with LocalEngine() as engine, engine.connected():
        yield engine
