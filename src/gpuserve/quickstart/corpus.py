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


def standard_library_docstrings(root: Path | None = None, *, limit: int = 0) -> list[Docstring]:
    """The docstrings of modules, classes and functions under *root*, in a stable order.

    Args:
        root: A folder of sources; by default this Python's standard library.
        limit: So many, spread evenly over all of them; 0: all.

    Examples:
        >>> import json
        >>> len(standard_library_docstrings(Path(json.__file__).parent, limit=2))
        2
    """
    folder = root if root is not None else Path(sysconfig.get_paths()["stdlib"])
    found: list[Docstring] = []
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if _NOT_LIBRARY.isdisjoint(parts[:-1]):
            module = ".".join(part for part in parts if part != "__init__")
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue  # the library ships files for other versions, and broken ones for its own tests
            found += _documented(tree, module)
    if not limit or limit >= len(found):
        return found
    return [found[place * len(found) // limit] for place in range(limit)]


def _documented(node: ast.AST, name: str) -> Iterator[Docstring]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and text.strip():
            yield Docstring(name, text)
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _documented(child, f"{name}.{child.name}" if inner else name)  # type: ignore[attr-defined]
