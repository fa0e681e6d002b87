"""Hides from a container what its image does not bring, so that what fails on Modal fails here.

Hidden is what lies in this interpreter's own places: modules of distributions that the image does not
bring (parts of namespace packages too), their metadata, and folders that are only on this machine's
path. What the container's sources, mounts and volumes bring is found as ever.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import json
import os
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Hidden", "guard_imports", "hidden_from", "installed", "normalised"]


def normalised(name: str) -> str:
    """A distribution's name in its one spelling.

    Source:
        The name normalisation rule of the Python packaging specifications (PEP 503).

    Examples:
        >>> normalised("Sentence_Transformers")
        'sentence-transformers'
    """
    return "-".join(part for part in name.lower().replace("_", "-").replace(".", "-").split("-") if part)


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution: its names, and what of the path only it brought."""

    name: str
    version: str
    modules: frozenset[str]
    folders: frozenset[str] = frozenset()
    finders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Hidden:
    """What one container may not import.

    Attributes:
        modules: Dotted names, and the requirement that would bring each.
        distributions: Normalised names whose metadata is not found either.
        places: Where this interpreter keeps what is installed.
        folders: Entries of the path that are only this machine's.
        finders: Modules whose import hooks serve editable installs.
    """

    modules: dict[str, str]
    distributions: list[str]
    places: list[str]
    folders: list[str]
    finders: list[str]


@functools.cache
def installed() -> tuple[Distribution, ...]:
    """Every distribution of this interpreter; read once a process tree."""
    return tuple(_read(one) for one in importlib.metadata.distributions())


def _read(one: importlib.metadata.Distribution) -> Distribution:
    folders: set[str] = set()
    finders: set[str] = set()
    modules = set(_modules(_python_files(one)))
    about = one.metadata  # parsed anew at each access
    if _is_editable(one):
        # an editable install lists no modules of its own
        modules.add(normalised(about["Name"]).replace("-", "_"))
        for file in one.files or []:
            if file.suffix == ".pth":
                lines = Path(str(file.locate())).read_text(encoding="utf-8").splitlines()
                folders |= {os.path.realpath(line) for line in lines if line and not line.startswith("import ")}
            elif file.name.endswith("_finder.py"):
                finders.add(file.stem)
    return Distribution(about["Name"], about["Version"], frozenset(modules), frozenset(folders), frozenset(finders))


def _python_files(one: importlib.metadata.Distribution) -> list[str]:
    """What a distribution brought that can be imported, as paths with slashes.

    Each engine reads some sixty thousand lines here before its first container; as ``Distribution.files``,
    which makes an object of each, that was a second of every start.
    """
    record = one.read_text("RECORD")
    if record is None:
        files = [file.as_posix() for file in one.files or []]
    elif '"' in record:
        files = [row[0] for row in csv.reader(record.splitlines()) if row]
    else:
        files = [line.partition(",")[0] for line in record.splitlines()]
    return [file for file in files if file.endswith((".py", ".so", ".pyd")) and not file.startswith(("../", "/"))]


def _is_editable(one: importlib.metadata.Distribution) -> bool:
    text = one.read_text("direct_url.json")
    return bool(text) and bool(json.loads(text or "{}").get("dir_info", {}).get("editable"))


def _modules(files: Sequence[str]) -> Iterator[str]:
    """The shortest dotted names that are a distribution's own: packages with code, and single modules.

    Examples:
        >>> sorted(set(_modules(["a/__init__.py", "a/b/__init__.py", "space/c/__init__.py", "d.py", "e-f/g.py"])))
        ['a', 'd', 'space.c']
    """
    tops = {
        file.removesuffix("/__init__.py") for file in files if file.count("/") == 1 and file.endswith("/__init__.py")
    }
    yield from (top for top in tops if top.isidentifier())
    # nearly all files lie below one of those, and are settled by it
    paths = [tuple(file.split("/")) for file in files if file.partition("/")[0] not in tops]
    packages = {parts[:-1] for parts in paths if parts[-1] == "__init__.py"}
    for parts in paths:
        owner = next((parts[:end] for end in range(1, len(parts)) if parts[:end] in packages), None)
        name = owner or (*parts[:-1], parts[-1].partition(".")[0])
        if all(part.isidentifier() for part in name):
            yield ".".join(name)


def hidden_from(brought: Collection[str]) -> Hidden:
    """What a container whose image brings only the distributions *brought* may not see."""
    names = {normalised(name) for name in brought}
    kept = [one for one in installed() if normalised(one.name) in names]
    others = [one for one in installed() if normalised(one.name) not in names]
    shown = {module for one in kept for module in one.modules}
    modules = {
        module: f"{one.name}=={one.version}"
        for one in others
        for module in one.modules
        if module not in shown and module not in sys.modules
    }
    shown_folders = {folder for one in kept for folder in one.folders}
    entries = {entry: os.path.realpath(entry) for entry in sys.path if Path(entry).is_dir()}
    places = {*_standard_places(), *(real for real in entries.values() if _has_distributions(real))}
    folders = [entry for entry, real in entries.items() if not _is_within(real, places) and real not in shown_folders]
    finders = [finder for one in others for finder in one.finders]
    names_of_others = [normalised(one.name) for one in others]
    return Hidden(modules, names_of_others, sorted(places), folders, finders)


@functools.cache
def _standard_places() -> tuple[str, ...]:
    """Where this interpreter keeps the standard library and what was installed into it."""
    paths = sysconfig.get_paths()
    found = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(os.path.realpath(one) for one in [*found, *site.getsitepackages(), site.getusersitepackages()])


def _has_distributions(folder: str) -> bool:
    return any(one.suffix in {".dist-info", ".egg-info"} for one in Path(folder).iterdir())


def _is_within(path: str, places: Iterable[str]) -> bool:
    return any(path == one or path.startswith(f"{one}{os.sep}") for one in places)


class _Filtered:
    """Another finder that finds nothing hidden in this interpreter's own places."""

    def __init__(self, finder: Any, hidden: Hidden) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _requirement(self._hidden, fullname) is None:
            found: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
            return found
        if self._finder is not PathFinder:
            return None
        places = self._hidden.places
        elsewhere = [
            one for one in (sys.path if path is None else path) if not _is_within(os.path.realpath(one), places)
        ]
        return PathFinder.find_spec(fullname, elsewhere, target)

    def find_distributions(self, *arguments: Any, **options: Any) -> Iterator[importlib.metadata.Distribution]:
        found: Iterable[importlib.metadata.Distribution] = getattr(
            self._finder, "find_distributions", lambda *_arguments, **_options: ()
        )(*arguments, **options)
        return (one for one in found if normalised(one.name or "") not in self._hidden.distributions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


class _Explained(MetaPathFinder):
    """The last finder: says why a module is not found; ``importlib.util.find_spec`` only hears that it is not."""

    def __init__(self, hidden: Hidden) -> None:
        self._hidden = hidden

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        requirement = _requirement(self._hidden, fullname)
        if requirement is None or _only_looks():
            return None
        error = ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        error.add_note(
            f'This image does not bring it, though this machine has it: add .pip_install("{requirement}") to the image.'
        )
        raise error


def _requirement(hidden: Hidden, fullname: str) -> str | None:
    parts = fullname.split(".")
    for end in range(1, len(parts) + 1):
        found = hidden.modules.get(".".join(parts[:end]))
        if found is not None:
            return found
    return None


def _only_looks() -> bool:
    frame = sys._getframe(2)
    for _ in range(3):
        if frame.f_code.co_filename.endswith(("importlib/util.py", "<frozen importlib.util>")):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def guard_imports(hidden: Hidden) -> None:
    """Hide from this process what *hidden* names."""
    sys.path[:] = [entry for entry in sys.path if entry not in hidden.folders]
    finders = [one for one in sys.meta_path if getattr(one, "__module__", "") not in hidden.finders]
    sys.meta_path[:] = [*(_Filtered(finder, hidden) for finder in finders), _Explained(hidden)]
