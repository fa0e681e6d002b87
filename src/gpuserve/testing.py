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
    """An engine with an empty state, to which this process's modal client is pointed for one test.

    Apps and objects that a module defines work in each test anew, and see nothing of the tests before.

    Examples:
        >>> def test_squares(local_engine):  # doctest: +SKIP
        ...     with app.run():
        ...         assert square.remote(3) == 9
    """
    from gpuserve.engine import LocalEngine
    from gpuserve.engine.protocol import forget_client

    forget_client()
    with LocalEngine() as engine, monkeypatch.context() as patch:
        for name, value in {**engine.environment, "MODAL_ENVIRONMENT": "main"}.items():
            patch.setenv(name, value)
        try:
            yield engine
        finally:
            forget_client()
