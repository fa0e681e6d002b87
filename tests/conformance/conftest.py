"""A client's whole program in one process: its look-ups, its calls, and the commands that it types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpuserve.engine import LocalEngine

HEAD = """
import contextlib, io, json, modal, sys
from modal.__main__ import main as modal_main
found = {}

def cli(*arguments):
    # the real command line, without the second that its imports take each time
    said, sys.argv = io.StringIO(), ["modal", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said): modal_main()
    except SystemExit as left:
        return said.getvalue() if not left.code else f"failed: {said.getvalue()}{left.code}"
    return said.getvalue()

def what(call):
    try: return call()
    except BaseException as error: return str(error)
"""


@pytest.fixture
def program(engine: LocalEngine, tmp_path: Path) -> Callable[..., Any]:
    """Run a client's source, with ``cli(...)`` at hand, beside *files*; return what it put into ``found``."""

    def run(source: str, **files: str) -> Any:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", HEAD + textwrap.dedent(source) + "\nprint(json.dumps(found))"],
            env={**os.environ, **engine.environment, "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
