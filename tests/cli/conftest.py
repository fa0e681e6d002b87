"""The real `gpuserve` command, on state folders of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

COMMAND = [sys.executable, "-P", "-m", "gpuserve.cli"]  # as the script does, whose folder is on the path instead


APP = """
import modal
app = modal.App("kept")

@app.function()
def double(x: int = 21):
    return 2 * x

@app.local_entrypoint()
def main():
    print("doubled", double.remote())
"""


class Cli:
    """`gpuserve` in a folder, on a state folder."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self._started: list[subprocess.Popen[str]] = []

    def environment(self, **variables: str | None) -> dict[str, str]:
        given = {"GPUSERVE_HOME": str(self.home), "COLUMNS": "200", **variables}
        inherited = {name: value for name, value in os.environ.items() if name not in given}
        return inherited | {name: value for name, value in given.items() if value is not None}

    def __call__(self, *arguments: str, code: int | None = 0, **variables: str | None) -> subprocess.CompletedProcess:
        """Run it; *code* is what it must exit with, ``None`` for anything."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=self.environment(**variables),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            preexec_fn=_obey_modes,
        )
        assert code is None or done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def refused(self, *arguments: str, code: int = 2, **variables: str | None) -> str:
        """Run it, and return the one error that it must tell."""
        return _error_of(self(*arguments, code=code, **variables))

    def start(self, *arguments: str, **variables: str | None) -> subprocess.Popen[str]:
        """Start it, as the leader of a group of its own, as a shell does."""
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environment(**variables),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self._started.append(process)
        return process

    def write(self, name: str, source: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(source))
        # what was compiled of another text of the same length, in the same second, would pass for this one's
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        return path

    def write_app(self, name: str = "kept") -> None:
        self.write(f"{name}.py", APP.replace("kept", name))

    def state(self) -> dict[str, bytes]:
        """What the state's files hold; a lock, a log and an index that SQLite makes anew are none of it."""
        passing = {"engine.lock", "engine.log", "engine.sqlite3-shm"}
        return {
            str(path.relative_to(self.home)): path.read_bytes()
            for path in sorted(self.home.rglob("*"))
            if path.is_file() and path.name not in passing
        }

    def leave_nothing(self) -> None:
        """End the engine that is up, if one is, and what a test that failed has left."""
        for process in self._started:
            process.kill()
            process.wait()
            process.stdout.close()
        if (self.home / "engine.json").exists():
            self("local", "down")
        assert self.processes() == []

    def processes(self) -> list[psutil.Process]:
        """Every live process that was started for this state folder: commands, engines and their containers."""
        mark = f"GPUSERVE_HOME={self.home}"
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                variables = Path(f"/proc/{process.pid}/environ").read_text(errors="replace").split("\0")
                if mark in variables and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def json(self, *arguments: str) -> dict:
        return json.loads(self(*arguments, "--json").stdout)

    def apps(self) -> list[str]:
        """The names of the deployed apps."""
        facts = self.json("local", "status")
        name, apps = ("name", facts["apps"]) if facts["up"] else ("description", self.json("local", "app", "list"))
        return [app[name] for app in apps if app["state"] == "deployed"]

    def kill_engine(self) -> int:
        """End the engine that is up as a power cut would, and return its pid."""
        process = psutil.Process(self.json("local", "status")["pid"])
        process.kill()
        process.wait(10)
        return process.pid


def _obey_modes() -> None:
    """Let the modes of files bind root as well as anybody: no capability to write where they forbid it."""
    if os.getuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def _error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one error that a command told, on one line and without any frame of ours."""
    assert "Traceback" not in done.stderr, done.stderr
    found = re.findall(r"^Error: (.*(?:\n(?!Error: ).+)*)", done.stderr, re.MULTILINE)
    assert len(found) == 1, done.stderr
    return " ".join(found[0].split())


@pytest.fixture(scope="module")
def new_cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cli]]:
    """Commands on a fresh state folder, or on a given one; what they leave up ends with the module."""
    made: list[Cli] = []

    def make(home: Path | None = None, state: Path | None = None) -> Cli:
        folder = tmp_path_factory.mktemp("cli")
        if state is not None:
            home = shutil.copytree(state, folder / "home", ignore=shutil.ignore_patterns("*.sock"))
        made.append(Cli(folder, home or folder / "home"))
        return made[-1]

    yield make
    for one in made:
        one.leave_nothing()


@pytest.fixture
def cli(new_cli: Callable[..., Cli]) -> Cli:
    """Commands on a fresh state folder."""
    return new_cli()


@pytest.fixture(scope="module")
def up(new_cli: Callable[..., Cli]) -> Cli:
    """Commands where an engine is up."""
    one = new_cli()
    one("local", "up")
    return one


@pytest.fixture(scope="module")
def deployed(new_cli: Callable[..., Cli]) -> Path:
    """The state folder of an engine that was killed, with the app ``kept`` in it and a log that is not empty."""
    one = new_cli()
    one.write_app()
    one("local", "up")
    one("local", "deploy", "kept.py")
    one("local", "dict", "create", "numbers")
    one.kill_engine()
    (one.home / "engine.json").unlink()
    assert (one.home / "engine.sqlite3-wal").stat().st_size > 10_000
    return one.home


@pytest.fixture(scope="session")
def error_of() -> Callable[[subprocess.CompletedProcess[str]], str]:
    """The one error that a command told."""
    return _error_of


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any]], Any]:
    """Ask again and again until the answer is true, and return it; a minute is the most."""

    def wait(question: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 60
        while not (answer := question()):
            assert time.monotonic() < deadline, "it never came true"
            threading.Event().wait(0.02)
        return answer

    return wait
