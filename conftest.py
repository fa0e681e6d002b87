"""The documentation, run as it is written (Sybil).

- Docstrings: every ``>>>`` example.
- Markdown, ``python`` blocks: run, one after the other, in one namespace a page. A block whose first line is a comment
  with a file's name, ``# hello.py``, is that file instead, in a folder that the page has for itself.
- Markdown, ``console`` blocks: each line that begins with ``$`` is run by bash in that folder; what it prints is
  compared with the lines below it, where ``...`` stands for anything, and blanks do not count. A container's log may
  come between any two lines: its JSON is left out.
- Markdown, ``sh`` blocks: checked for syntax alone; they install things.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.rest import DocTestParser

_FILE_NAME = re.compile(r"# ([a-z_]+\.(?:py|toml|txt))\n")
_LIMIT_S = 110.0
_EVENT = '{"event": '


def _python(example: Example) -> None:
    named = _FILE_NAME.match(example.parsed)
    if named is not None:
        (_folder(example.namespace) / named[1]).write_text(example.parsed)
    else:
        PythonEvaluator()(example)


def _console(example: Example) -> str | None:
    sessions = re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]
    for session in sessions:
        command, _, expected = session.partition("\n")
        printed = _bash(command, example.namespace)
        if _EVENT not in expected:  # a container's log comes when it comes, also between two lines of the page
            printed = "\n".join(line for line in printed.splitlines() if not line.startswith(_EVENT))
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if not doctest.OutputChecker().check_output(expected, printed, flags):
            return f"$ {command}\nwas said to print:\n{expected}\nand printed:\n{printed}"
    return None


def _shell_syntax(example: Example) -> str | None:
    done = subprocess.run(["/bin/bash", "-n"], input=example.parsed, capture_output=True, text=True, check=False)
    return done.stderr or None


def _bash(command: str, namespace: dict[str, Any]) -> str:
    folder = _folder(namespace)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GPUSERVE_HOME": str(folder / ".gpuserve"),
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    return done.stdout


def _folder(namespace: dict[str, Any]) -> Path:
    """The page's own folder, made when it is first needed."""
    if "_page_folder" not in namespace:
        namespace["_page_folder"] = tempfile.TemporaryDirectory(prefix="gpuserve-docs-")
    return Path(namespace["_page_folder"].name)


def _leave_nothing(namespace: dict[str, Any]) -> None:
    if "_page_folder" in namespace:
        _bash("gpuserve local down", namespace)
        namespace.pop("_page_folder").cleanup()


_pages = Sybil(
    parsers=[
        CodeBlockParser("python", _python),
        CodeBlockParser("console", _console),
        CodeBlockParser("sh", _shell_syntax),
    ],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
    teardown=_leave_nothing,
    name="pages",
)
_docstrings = Sybil(
    parsers=[DocTestParser(doctest.ELLIPSIS)], path="src", patterns=["*.py"], excludes=["__main__.py", "zygote.py"]
)

pytest_collect_file = (_pages + _docstrings).pytest()
