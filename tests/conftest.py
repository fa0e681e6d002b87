"""Apps through the real modal CLI and client, on one engine a module."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
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

# What is collected stays to the end: looking through it for cycles, over and over, is a tenth of a worker's work.
gc.set_threshold(100_000, 50, 100)

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


class ModalForks:
    """Runs ``modal ARGS``, each time in a new fork of a process that has imported it; `modal_forks.py` says how."""

    def __init__(self) -> None:
        here = Path(__file__).with_name("modal_forks.py")
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self, *arguments: str, environment: Mapping[str, str], folder: Path, timeout_s: float = 100
    ) -> subprocess.CompletedProcess[str]:
        with self._lock, tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as error:
            wanted = {"arguments": arguments, "environment": {**os.environ, **environment}, "folder": str(folder)}
            self._process.stdin.write(json.dumps({**wanted, "out": out.name, "error": error.name}) + "\n")
            self._process.stdin.flush()
            pid = int(self._process.stdout.readline())
            late = threading.Timer(timeout_s, os.kill, (pid, signal.SIGKILL))
            late.start()
            code = int(self._process.stdout.readline())
            late.cancel()
            return subprocess.CompletedProcess(("modal", *arguments), code, out.read().decode(), error.read().decode())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def modal_forks() -> Iterator[ModalForks]:
    forks = ModalForks()
    yield forks
    forks.close()


@pytest.fixture
def modal_cli(engine: LocalEngine, tmp_path: Path, modal_forks: ModalForks) -> Run:
    """Run ``modal ARGS`` against the engine, in an empty folder."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**engine.environment, "COLUMNS": "200"}
        done = modal_forks(*arguments, environment=environment, folder=tmp_path)
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a size as `mount` writes it, "64k"; skips where that is not permitted."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
