"""Hides from a container what its image does not bring, so that what fails on Modal fails here."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["guard_imports", "installed_modules", "normalised"]


def normalised(name: str) -> str:
    """A distribution's name in its one spelling.

    Source:
        The name normalisation rule of the Python packaging specifications (PEP 503).

    Examples:
        >>> normalised("Sentence_Transformers")
        'sentence-transformers'
    """
    return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)


class _Hidden:
    """The names that a container may not import, unless its own sources bring them."""

    def __init__(self, distributions: dict[str, str], root: str) -> None:
        self._distributions, self._root = distributions, root

    def distribution_of(self, module: str) -> str | None:
        top = module.partition(".")[0]
        if top not in self._distributions or (Path(self._root) / top).exists():
            return None
        return None if (Path(self._root) / f"{top}.py").exists() else self._distributions[top]


class _Guard(MetaPathFinder):
    """Explains a refusal; asked by ``importlib.util.find_spec``, it only says that there is nothing."""

    def __init__(self, hidden: _Hidden) -> None:
        self._hidden = hidden

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        distribution = self._hidden.distribution_of(fullname)
        if distribution is None or _only_looks():
            return None
        top = fullname.partition(".")[0]
        error = ModuleNotFoundError(f"No module named {top!r}", name=top)
        error.add_note(
            f"This image does not bring {distribution!r}, though this machine has it: "
            f'add .pip_install("{distribution}=={importlib.metadata.version(distribution)}") to the image.'
        )
        raise error


class _Filtered:
    """Another finder that does not see what is hidden."""

    def __init__(self, finder: Any, hidden: _Hidden) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._hidden.distribution_of(fullname) is not None:
            return None
        found: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def _only_looks() -> bool:
    frame = sys._getframe(2)
    for _ in range(3):
        if frame.f_code.co_filename.endswith(("importlib/util.py", "<frozen importlib.util>")):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


@functools.cache
def installed_modules() -> dict[str, tuple[str, ...]]:
    """Each importable top-level name and the distributions that bring it; read once a process tree."""
    found = {module: tuple(names) for module, names in importlib.metadata.packages_distributions().items()}
    if any(normalised(one.name or "") == "gpuserve" for one in importlib.metadata.distributions()):
        found.setdefault("gpuserve", ("gpuserve",))  # an editable install lists no modules of its own
    return found


def guard_imports(allowed: Collection[str] | None, root: str) -> None:
    """Refuse imports of installed distributions that are not in *allowed* (``None``: allow all)."""
    if allowed is None:
        return
    brought = {normalised(name) for name in allowed}
    distributions = {
        module: names[0]
        for module, names in installed_modules().items()
        if not any(normalised(name) in brought for name in names) and module not in sys.modules
    }
    hidden = _Hidden(distributions, root)
    sys.meta_path[:] = [_Guard(hidden), *(_Filtered(finder, hidden) for finder in sys.meta_path)]
