"""The weights' hub on loopback, asked for datasets: the same files under the paths that datasets have."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

REPO = "org/rows"


def _weights_hub() -> Any:
    """The module beside the weights' tests; tests are no package."""
    if "weights_hub" not in sys.modules:
        place = Path(__file__).parents[1] / "weights/hub.py"
        spec = importlib.util.spec_from_file_location("weights_hub", place)
        sys.modules["weights_hub"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["weights_hub"])
    return sys.modules["weights_hub"]


@contextmanager
def running_dataset_hub() -> Iterator[Any]:
    """A hub whose one repository is the dataset `REPO`, with no files yet."""
    weights = _weights_hub()

    class Handler(weights._Handler):
        def answer(self, *, body: bool) -> None:
            for ours, theirs in (("/api/datasets/", "/api/models/"), ("/datasets/", "/")):
                if self.path.startswith(ours):
                    self.path = theirs + self.path.removeprefix(ours)
                    return super().answer(body=body)
            return self.refuse(404, "RepoNotFound")

    with patch.multiple(weights, _Handler=Handler, REPO=REPO), weights.running_hub() as hub:
        hub.commits = {weights.COMMIT: {}, weights.OTHER_COMMIT: {}}
        yield hub
