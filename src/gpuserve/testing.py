"""A pytest plugin: the fixture `local_engine` runs a test's Modal app on an engine of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpuserve.engine import LocalEngine

__all__ = ["local_engine"]


@pytest.fixture
def local_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalEngine]:
    """An engine with an empty state; this process's modal client is pointed at it."""
    from gpuserve.engine import LocalEngine

    with LocalEngine() as engine:
        for key, value in engine.environment.items():
            monkeypatch.setenv(key, value)
        yield engine
