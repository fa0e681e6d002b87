"""Every docstring of Python's standard library, read from its sources without importing them."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Docstring", "standard_library_docstrings"]

# Tests, and programs that happen to be shipped with the library.
_NOT_LIBRARY = frozenset({"site-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3"})


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring and the dotted name that it documents."""

    name: str
    text: str


def standard_library_docstrings(root: Path | None = None) -> Iterator[Docstring]:
    """The docstrings of modules, classes and functions under *root*, in a stable order.

    Examples:
        >>> first = next(standard_library_docstrings())
        >>> bool(first.name and first.text)
        True
    """
    folder = root if root is not None else Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _NOT_LIBRARY.isdisjoint(parts[:-1]):
            module = ".".join(part for part in parts if part != "__init__")
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue  # the library ships files for other versions, and broken ones for its own tests
            yield from _documented(tree, module)


def _documented(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and text.strip():
            yield Docstring(name, text)
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _documented(child, f"{name}.{child.name}" if inner else name)  # type: ignore[attr-defined]
