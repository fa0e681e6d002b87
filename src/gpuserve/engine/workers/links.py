"""Where no mount namespace is allowed: a container's files and volumes as links at their paths.

A link is on the whole machine, so it is counted, refused where something else is, and taken away with
the last container that needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuserve.exceptions import EngineError

__all__ = ["Links", "lay_out"]

_ROOT = "/root/"


def lay_out(root: Path, files: Sequence[tuple[str, str, int]]) -> None:
    """Copy the files that belong under ``/root`` to *root* instead."""
    root.mkdir()
    for path, host, mode in files:
        if path.startswith(_ROOT):
            _copy(host, root / path.removeprefix(_ROOT), mode)


def _copy(host: str, target: Path, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(host, target)
    target.chmod(mode)


@dataclass(slots=True)
class _Link:
    target: Path
    holders: set[str] = field(default_factory=set)


class Links:
    """The links of all containers of one engine."""

    def __init__(self, folder: Path, ours: Sequence[Path]) -> None:
        """Keep what links point to in *folder*; a link into one of *ours* that nobody holds is a leftover."""
        self._folder, self._ours = folder, [folder, *ours]
        self._links: dict[Path, _Link] = {}
        self._made: list[Path] = []

    def hold(self, task_id: str, files: Sequence[tuple[str, str, int]], volumes: Sequence[tuple[str, Path]]) -> None:
        """Make the links of one container.

        Raises:
            EngineError: If a path is taken, not writable, or inside another volume; no link is left then.
        """
        try:
            for path, host in sorted(volumes):
                self._link(task_id, Path(path), host)
            for place, target in self._bundles(files).items():
                self._link(task_id, place, target)
        except EngineError:
            self.release(task_id)
            raise

    def _bundles(self, files: Sequence[tuple[str, str, int]]) -> dict[Path, Path]:
        """Put files that share their first missing directory together, so that one link serves them all."""
        bundles: dict[Path, list[tuple[Path, str, int]]] = {}
        for name, host, mode in files:
            if name.startswith(_ROOT):
                continue
            path = Path(name)
            place = next((one for one in [*reversed(path.parents), path] if self._is_free(one)), path)
            bundles.setdefault(place, []).append((path, host, mode))
        found: dict[Path, Path] = {}
        for place, inside in bundles.items():
            lines = [f"{path} {host} {mode}" for path, host, mode in sorted(inside)]
            target = self._folder / hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
            if not target.exists():
                for path, host, mode in inside:
                    _copy(host, target if path == place else target / path.relative_to(place), mode)
            found[place] = target
        return found

    def _is_free(self, path: Path) -> bool:
        return path in self._links or self._is_leftover(path) or not (path.exists() or path.is_symlink())

    def _is_leftover(self, path: Path) -> bool:
        if path in self._links or not path.is_symlink():
            return False
        return any(path.readlink().is_relative_to(one) for one in self._ours)

    def _link(self, task_id: str, path: Path, target: Path) -> None:
        known = self._links.get(path)
        if known is not None and known.target == target:
            known.holders.add(task_id)
            return
        if known is not None:
            raise _refusal(path, "another container that runs now has something else there")
        if any(parent in self._links for parent in path.parents):
            raise _refusal(path, "it lies inside a volume, or a folder, that is itself a link")
        try:
            if self._is_leftover(path):
                path.unlink()
            for folder in [one for one in reversed(path.parents) if not one.exists()]:
                folder.mkdir()
                self._made.append(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        except OSError as error:
            raise _refusal(path, f"no link can be made there ({error.strerror})") from error
        self._links[path] = _Link(target, {task_id})

    def release(self, task_id: str) -> None:
        """Take away the links that only this container needed."""
        for path, link in list(self._links.items()):
            link.holders.discard(task_id)
            if not link.holders:
                del self._links[path]
                if path.is_symlink() and path.readlink() == link.target:
                    path.unlink()
        for folder in reversed(self._made.copy()):
            if not any(path.is_relative_to(folder) for path in self._links):
                self._made.remove(folder)
                with contextlib.suppress(OSError):  # somebody else uses it by now
                    folder.rmdir()


def _refusal(path: Path, why: str) -> EngineError:
    return EngineError(
        f"{path} cannot be offered to the container: without mount namespaces it would be a link, and {why}. "
        "Use a path that is free and writable, or run the engine as root or where user namespaces are allowed."
    )
