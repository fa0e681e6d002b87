"""Every check of the project, by name: `nox -l` lists them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "docs", "browser"]

_BIN = Path(sys.executable).parent  # the environment that nox runs in, activated or not


def _run(session: nox.Session, tool: str, *arguments: str) -> None:
    session.run(str(_BIN / tool), *arguments, external=True)


# A module stays on one worker, and so does its engine. Three, because tests wait for processes about a third of the time.
_WORKERS = ("-n", "3", "--dist", "loadscope")


@nox.session
def tests(session: nox.Session) -> None:
    """The commit tier."""
    # a short name: tests put unix sockets below it, whose paths must stay under 108 bytes
    with tempfile.TemporaryDirectory(prefix="gs") as folder:
        _run(session, "python", "-m", "pytest", "-q", *_WORKERS, "--basetemp", f"{folder}/t", *session.posargs)


@nox.session(venv_backend="venv", python=["3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The commit tier on the other Pythons, where they are installed; without torch, whose tests are skipped."""
    session.install("-q", "-e", ".[test]")
    with tempfile.TemporaryDirectory(prefix="gs") as folder:
        session.run("python", "-m", "pytest", "-q", *_WORKERS, "--basetemp", f"{folder}/t", *session.posargs)


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
    """Every block of the documentation, run as it is written; `conftest.py` says how."""
    _run(session, "python", "-m", "pytest", "-q", *_WORKERS, "README.md", "CONTRIBUTING.md", "docs", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The search page in a real Chromium, which is installed if that is allowed."""
    _run(session, "python", "-m", "pytest", "-q", "-m", "browser", "tests/quickstart", *session.posargs)


@nox.session
def heavy(session: nox.Session) -> None:
    """The full counts: kills, faults and long runs."""
    _run(session, "python", "-m", "pytest", "-q", "-m", "heavy", "--timeout=3600", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks, ours and the peer's in one run; raw JSON under benchmarks/results."""
    _run(session, "python", "-m", "benchmarks", *session.posargs)
