"""Changes to files that come about with a transaction, or not at all, whatever ends the engine when.

A step is written down in the transaction that needs it, and done right after the commit; one that a
kill kept from being done is done when the engine starts again. Contents are prepared beforehand, in
a folder of their own, so that a step is one rename.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpuserve.engine.durable_files import make_folder, place_files, remove, sync_folder
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.store import Store
from gpuserve.exceptions import StateError

__all__ = ["FileSteps"]

_TABLE = """
CREATE TABLE IF NOT EXISTS file_steps (
    step INTEGER PRIMARY KEY AUTOINCREMENT, action TEXT NOT NULL, staged TEXT NOT NULL, target TEXT NOT NULL);
"""
_PLACE, _DISCARD = "place", "discard"


@dataclass(frozen=True, slots=True)
class _Step:
    """``place``: *staged* becomes *target*. ``discard``: *target* becomes *staged*, and goes."""

    action: str
    staged: Path
    target: Path


class FileSteps:
    """The steps for the files under one folder."""

    def __init__(self, store: Store, root: Path) -> None:
        """Do what an earlier engine wrote down and was kept from doing, and drop what it left unfinished.

        Raises:
            StateError: If a step of the earlier engine cannot be done; it stays written down.
        """
        make_folder(root)
        self._store, self._root = store, root.resolve()
        self._staging = self._root / ".staging"
        self._noted: list[_Step] = []
        store.create_tables(_TABLE)
        make_folder(self._staging)
        rows = store.query("SELECT action, staged, target FROM file_steps ORDER BY step")
        steps = [_Step(action, self._staging / staged, self._root / target) for action, staged, target in rows]
        try:
            self._do(steps)
        except OSError as error:
            raise StateError(
                f"files that an engine acknowledged before it was killed cannot be put in their places: {error}. "
                f"They are kept in {self._staging}. Make room or permit it, then start the engine again."
            ) from error
        store.execute("DELETE FROM file_steps")
        for leftover in self._staging.iterdir():
            remove(leftover)

    def stage(self) -> Path:
        """A free path to prepare a file at; what is not placed must be removed by the caller."""
        return self._staging / new_id("new")

    def place(self, staged: Path, target: Path) -> None:
        """Give a prepared and synced file its name when the present transaction commits."""
        self._note(_Step(_PLACE, staged, target))

    def discard(self, path: Path) -> None:
        """Remove a file, or a folder with all in it, when the present transaction commits."""
        self._note(_Step(_DISCARD, self._staging / new_id("gone"), path))

    def _note(self, step: _Step) -> None:
        self._store.execute(
            "INSERT INTO file_steps (action, staged, target) VALUES (?, ?, ?)",
            (step.action, step.staged.name, str(step.target.relative_to(self._root))),
        )
        self._noted.append(step)
        if len(self._noted) == 1:
            sync_folder(self._staging)  # a power cut after the commit must find what was prepared by its name
            self._store.on_rollback(self._forget)
            self._store.after_commit(self._do_noted)

    def _forget(self) -> None:
        steps, self._noted = self._noted, []
        for step in steps:
            remove(step.staged)

    def _do_noted(self) -> None:
        steps, self._noted = self._noted, []
        try:
            self._do(steps)
        finally:
            # one that failed is answered with an error: it must not happen later after all
            self._store.execute("DELETE FROM file_steps")
            for step in steps:
                remove(step.staged)

    def _do(self, steps: list[_Step]) -> None:
        place_files([(step.staged, step.target) for step in steps if step.action == _PLACE], self._root)
        for step in steps:
            there = step.target.exists() or step.target.is_symlink()  # a link may point to nothing
            if step.action == _DISCARD and there and not step.staged.exists():
                step.target.rename(step.staged)
                sync_folder(step.target.parent)
