"""Every check of the project, by name: `nox -l` lists them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "browser"]

_BIN = Path(sys.executable).parent  # the environment that nox runs in, activated or not


def _run(session: nox.Session, tool: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    session.run(str(_BIN / tool), *arguments, external=True, env=env)


# A module stays on one worker, and so does its engine. More than there are cores: tests wait for processes, too.
_WORKERS = ("-n", "4", "--dist", "loadscope")
# Four workers with two threads of torch each spend a third of the models' time in waiting for each other.
# And hundreds of processes that may keep no bytecode would each compile the same modules.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
_PAGES = ("README.md", "CONTRIBUTING.md")


def _pytest(run: Callable[..., object], *arguments: str) -> None:
    # a short name: tests put unix sockets below it, whose paths must stay under 108 bytes
    with tempfile.TemporaryDirectory(prefix="gs") as folder:
        run("-m", "pytest", "-q", *_WORKERS, "--basetemp", f"{folder}/t", *arguments, env=_ENVIRONMENT)


@nox.session
def tests(session: nox.Session) -> None:
    """The commit tier, every docstring, and the README run as it is written; `conftest.py` says how."""
    if not session.posargs and find_spec("sentence_transformers"):
        # pip left it and torch uncompiled: beside three other workers that is minutes, more than a test has
        _run(session, "python", "-c", "import sentence_transformers", env=_ENVIRONMENT)
    _pytest(partial(_run, session, "python"), *(session.posargs or ("tests", "src", *_PAGES)))


@nox.session(venv_backend="venv", python=["3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The commit tier on the other Pythons, where they are installed; without torch, whose tests are skipped."""
    session.install("-q", "-e", ".[test]")
    _pytest(partial(session.run, "python"), *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format and the direction of imports."""
    _run(session, "ruff", "check")
    _run(session, "ruff", "format", "--check")
    _run(session, "lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    _run(session, "mypy")


@nox.session
def quickstart(session: nox.Session) -> None:
    """The main job."""
    _run(session, "gpuserve", "quickstart", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Every block of the documentation."""
    _pytest(partial(_run, session, "python"), *_PAGES, "docs", *session.posargs)


@nox.session
def wide(session: nox.Session) -> None:
    """Further cases of what the commit tier shows, every page of the documentation, and fine-tuning."""
    _pytest(partial(_run, session, "python"), "docs")
    _pytest(partial(_run, session, "python"), "-m", "wide and not heavy and not browser", "tests", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The pages in a real Chromium, which is installed if that is allowed."""
    _run(
        session,
        "python",
        "-m",
        "pytest",
        "-q",
        "-m",
        "browser",
        "-n",
        "2",
        "--dist",
        "loadscope",
        "tests",
        *session.posargs,
    )


@nox.session
def heavy(session: nox.Session) -> None:
    """The full counts: kills, faults and long runs."""
    _run(session, "python", "-m", "pytest", "-q", "-m", "heavy", "--timeout=3600", *session.posargs)


@nox.session(venv_backend="venv")
def train(session: nox.Session) -> None:
    """Fine-tuning at its full counts, with MLflow's own server and W&B, which it installs."""
    session.install("-q", "torch==2.13.0")  # on its own first: a CPU's build will do
    session.install("-q", "-e", ".[test,train,tracking]", "mlflow>=3")
    session.run("python", "-m", "pytest", "-q", "-m", "heavy", "--timeout=3600", "tests/training", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, ours and the peer's in one run; raw JSON under benchmarks/results."""
    _run(session, "python", "-m", "benchmarks", *session.posargs)
