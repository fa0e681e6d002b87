"""The examples, each in the folder that a user would copy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"


def _load(name: str, path: Path) -> Any:
    """A module beside this one, or another test's; tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


examples_sent = _load("examples_sent", HERE / "sent.py")
_load("examples_postgres", HERE / "postgres.py")


@pytest.fixture
def example(engine, modal_forks):
    """Run ``modal ARGS`` in the folder of an example, against the engine."""

    def run(folder: str, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        whole = {**engine.environment, **environment, "COLUMNS": "200"}
        done = modal_forks(*arguments, environment=whole, folder=EXAMPLES / folder, timeout_s=900)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
