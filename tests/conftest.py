"""Apps through the real modal CLI and client, on one engine a module."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from modal.client import _Client

from gpuserve.engine import LocalEngine

# A slow machine is no fault of the code: no example is timed, and each failure prints how to repeat it.
hypothesis.settings.register_profile(
    "gpuserve", deadline=None, print_blob=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gpuserve")

# A shell without job control starts things in the background with these ignored; all that we start would inherit it.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def _no_client_outlives_its_module() -> Iterator[None]:
    """Modal keeps one client a process: one that is left behind would call an engine that is long gone."""
    yield
    assert _Client._client_from_env is None, "use `with engine.connected():` around what uses modal in this process"


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine() as running:
        yield running


@pytest.fixture
def modal_cli(engine: LocalEngine, tmp_path: Path) -> Run:
    """Run ``modal ARGS`` against the engine, in an empty folder."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "modal", *arguments],
            env={**os.environ, **engine.environment, "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def run_app(modal_cli: Run, tmp_path: Path) -> Callable[[str], Any]:
    """Run an app's source with ``modal run``; its entrypoint hands its findings to ``report(...)``."""

    def run(source: str) -> Any:
        report = tmp_path / "report.json"
        head = f"import json, pathlib\ndef report(found): pathlib.Path({str(report)!r}).write_text(json.dumps(found))\n"
        (tmp_path / "app.py").write_text(head + textwrap.dedent(source))
        modal_cli("run", "app.py")
        return json.loads(report.read_text())

    return run


@pytest.fixture(scope="session")
def debian_packages() -> Callable[..., None]:
    """Install programs that the tests need and Debian has, or skip."""

    def install(*packages: str) -> None:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            pytest.skip(f"only root on Debian may install what is missing here: apt-get install {' '.join(packages)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        patient = ("-q", "-o", "DPkg::Lock::Timeout=200")  # another worker may be at it
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            command = ["apt-get", *patient, *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"{' '.join(packages)} could not be installed: {done.stderr[-300:]}")

    return install
