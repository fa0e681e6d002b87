"""Every docstring of the standard library is found, and every one that is found is embedded."""

import ast
import json
import os
import sysconfig
from pathlib import Path

import pytest

from gpuserve.quickstart.corpus import standard_library_docstrings

NO_LIBRARY = {"site-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3"}


def documented():
    """How many docstrings there are, counted in another way: files by `os.walk`, nodes by `ast.walk`."""
    total = 0
    for folder, below, names in os.walk(sysconfig.get_paths()["stdlib"]):
        below[:] = set(below) - NO_LIBRARY
        for name in names:
            if name.endswith(".py"):
                try:
                    tree = ast.parse(Path(folder, name).read_bytes())
                except (SyntaxError, ValueError):
                    continue
                kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
                nodes = (node for node in ast.walk(tree) if isinstance(node, kinds))
                total += sum(bool((ast.get_docstring(node) or "").strip()) for node in nodes)
    return total


@pytest.mark.wide
def test_no_docstring_of_the_standard_library_is_left_out():
    found = standard_library_docstrings()

    assert len(found) == documented() > 7_000
    assert all(one.text.strip() for one in found)


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_command_embeds_every_docstring(start):
    process, _folder = start("--json")
    out, err = process.communicate(timeout=800)

    assert process.returncode == 0, err
    assert json.loads(out)["docstrings"] == documented()
