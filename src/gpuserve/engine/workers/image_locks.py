"""The exact versions that ``uv.lock`` and ``poetry.lock`` hold for this interpreter."""

from __future__ import annotations

import posixpath
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from packaging.markers import InvalidMarker, Marker

__all__ = ["LockError", "poetry_requirements", "uv_requirements"]

Read = Callable[[str], str | None]


class LockError(Exception):
    """A project's files do not say which packages it installs."""


def _load(read: Read, path: str) -> dict[str, Any] | None:
    text = read(path)
    if text is None:
        return None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"{posixpath.basename(path)} is no TOML: {error}") from error


def _options(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of each long option, given as ``--name=value`` or ``--name value``."""
    found: dict[str, list[str]] = {}
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            after = words[place + 1] if place + 1 < len(words) else ""
            found.setdefault(name, []).extend((value or ("" if after.startswith("-") else after)).split(","))
    return found


def _applies(marker: str, extras: Iterable[str] = ()) -> bool:
    if not marker:
        return True
    try:
        parsed = Marker(marker)
    except InvalidMarker as error:
        raise LockError(f"the marker {marker!r} cannot be read") from error
    return any(parsed.evaluate({"extra": extra}) for extra in (*extras, ""))


def uv_requirements(words: Sequence[str], folder: str, read: Read) -> list[str]:
    """What ``uv sync`` installs, from ``uv.lock`` or, without one, from ``pyproject.toml``.

    Raises:
        LockError: If neither file was sent, or one cannot be read.
    """
    options = _options(words)
    folder = posixpath.join(folder, *options.get("project", options.get("directory", [""])))
    project = _load(read, posixpath.join(folder, "pyproject.toml"))
    lock = _load(read, posixpath.join(folder, "uv.lock"))
    if project is None:
        raise LockError("pyproject.toml was not sent with the image")
    table = project.get("project", {})
    extras = set(options.get("extra", ()))
    if "all-extras" in options:
        extras |= set(table.get("optional-dependencies", {}))
    groups = set(options.get("group", ()))
    if "no-dev" not in options and "no-default-groups" not in options:
        groups |= set(project.get("tool", {}).get("uv", {}).get("default-groups", ["dev"]))
    if "all-groups" in options:
        groups |= set(project.get("dependency-groups", {}))
    groups -= set(options.get("no-group", ()))
    if lock is None:
        plain = [*table.get("dependencies", ())]
        for extra in sorted(extras):
            plain += table.get("optional-dependencies", {}).get(extra, ())
        for group in sorted(groups):
            plain += [one for one in project.get("dependency-groups", {}).get(group, ()) if isinstance(one, str)]
        return plain
    return _walk_uv(lock, extras, groups)


def _walk_uv(lock: Mapping[str, Any], extras: set[str], groups: set[str]) -> list[str]:
    packages: list[dict[str, Any]] = lock.get("package", [])
    by_name: dict[str, list[dict[str, Any]]] = {}
    for one in packages:
        by_name.setdefault(one["name"], []).append(one)
    root = next((one for one in packages if {"virtual", "editable"} & set(one.get("source", {}))), None)
    if root is None:
        raise LockError("uv.lock names no project")
    todo = [*root.get("dependencies", ())]
    for extra in extras:
        todo += root.get("optional-dependencies", {}).get(extra, ())
    for group in groups:
        todo += root.get("dev-dependencies", {}).get(group, ())
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted = todo.pop()
        if not _applies(wanted.get("marker", "")):
            continue
        package = _choose(by_name.get(wanted["name"], []), wanted.get("version"))
        if package is None:
            raise LockError(f"uv.lock has no {wanted['name']}")
        for extra in ["", *wanted.get("extra", ())]:
            if (wanted["name"], extra) in seen:
                continue
            seen.add((wanted["name"], extra))
            optional = package.get("optional-dependencies", {})
            todo += optional.get(extra, ()) if extra else package.get("dependencies", ())
        if package is not root and "version" in package:
            found[wanted["name"]] = f"{package['name']}=={package['version']}"
    return [found[name] for name in sorted(found)]


def _choose(candidates: Sequence[dict[str, Any]], version: str | None) -> dict[str, Any] | None:
    """One package may be locked in several versions, each for some machines."""
    for one in candidates:
        markers = one.get("resolution-markers", [""])
        if (version is None or one.get("version") == version) and any(_applies(marker) for marker in markers):
            return one
    return None


def poetry_requirements(words: Sequence[str], folder: str, read: Read) -> list[str]:
    """What ``poetry install`` installs, from ``poetry.lock``.

    Raises:
        LockError: If there is no lock file, or it cannot be read.
    """
    options = _options(words)
    lock = _load(read, posixpath.join(folder, "poetry.lock"))
    if lock is None:
        raise LockError("poetry.lock was not sent with the image")
    only, without, also = (set(options.get(name, ())) for name in ("only", "without", "with"))
    found: list[str] = []
    for one in lock.get("package", []):
        groups = set(one.get("groups", [one.get("category", "main")]))
        wanted = groups & only if only else groups - without
        if one.get("optional", False) and not groups & also:
            continue
        markers = one.get("markers", "")
        asked = [markers] if isinstance(markers, str) else [markers.get(group, "") for group in wanted]
        if wanted and any(_applies(marker) for marker in asked or [""]):
            found.append(f"{one['name']}=={one['version']}")
    return sorted(found)
