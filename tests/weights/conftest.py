"""A hub on loopback, and fetchers as processes of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> Any:
    """A module beside this one; tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name.removeprefix('weights_')}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


weights_hub = _load("weights_hub")


@pytest.fixture(scope="session")
def _hub() -> Iterator[Any]:
    with weights_hub.running_hub() as hub:
        yield hub


@pytest.fixture
def hub(_hub, monkeypatch) -> Any:
    _hub.reset()
    monkeypatch.setenv("HF_ENDPOINT", _hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return _hub


@pytest.fixture
def quick_retries(monkeypatch) -> None:
    """The hub's client waits a second before it asks again; not here."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    class Clock:
        def __getattr__(self, name: str) -> Any:
            return getattr(__import__("time"), name)

        def sleep(self, _seconds: float) -> None:
            pass

    monkeypatch.setattr(file_download, "time", Clock())
    monkeypatch.setattr(_http, "time", Clock())
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)


class Fetchers:
    """Starts fetches in processes, and tells how they ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "fetcher.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1"},
        )

    def start(self, **job: Any) -> list[int]:
        self._out = tempfile.TemporaryDirectory()
        job = {**job, "root": str(job["root"]), "out": self._out.name}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["pids"]

    def wait(self) -> tuple[list[int], list[dict[str, Any]]]:
        """Exit codes, and what each that lived to tell has told."""
        codes = json.loads(self._process.stdout.readline())["codes"]
        told = [json.loads(path.read_text()) for path in sorted(Path(self._out.name).glob("*.json"))]
        self._out.cleanup()
        return codes, told

    def run(self, **job: Any) -> tuple[list[int], list[dict[str, Any]]]:
        self.start(**job)
        return self.wait()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def fetchers() -> Iterator[Fetchers]:
    running = Fetchers()
    yield running
    running.close()
