"""A pytest plugin: the fixture `local_engine` runs a test's Modal app on an engine of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpuserve.engine import LocalEngine

__all__ = ["local_engine"]


@pytest.fixture
def local_engine() -> Iterator[LocalEngine]:
    """An engine with an empty state, to which this process's modal client is pointed for one test.

    Apps and objects that a module defines work in each test anew, and see nothing of the tests before.
    """
    from gpuserve.engine import LocalEngine

    with LocalEngine() as engine, engine.connected():
        yield engine
