"""Answers of windows that are not committed yet: one file a window and driver; a kill costs what was in flight."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpuserve.runtime.batch.answers import pack, unpack
from gpuserve.runtime.batch.frames import frame, frames_in
from gpuserve.runtime.batch.trials import DeadLetter, Failure, FailureKind
from gpuserve.runtime.batch.windows import OpenWindow
from gpuserve.runtime.weights.steps import naming_a_full_disk

__all__ = ["Journal"]

_HEAD = struct.Struct("<I")


class Journal:
    """Writes answers as they come; a kill leaves what was written, a power cut what was synced."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder, self._owner = folder, owner
        self._open: dict[int, int] = {}
        self._unsynced: set[int] = set()

    def answered(self, window: OpenWindow, places: Sequence[int], answers: Sequence[Any]) -> None:
        """Keep the answers of some items."""
        kind, data = pack(answers)
        self._write(window, {"places": list(places), "kind": kind}, data)

    def gave_up(self, window: OpenWindow, letter: DeadLetter) -> None:
        """Keep that an item was given up."""
        failure = {**asdict(letter.failure), "kind": letter.failure.kind.value}
        self._write(window, {"dead": letter.place, "attempts": letter.attempts, "failure": failure}, b"")

    def _write(self, window: OpenWindow, head: dict[str, Any], data: bytes) -> None:
        index = window.window.index
        if index not in self._open:
            path = self._folder / f"{index:06}-{self._owner}"
            self._open[index] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        told = json.dumps({**head, "input": window.window.fingerprint}).encode()
        record = frame(_HEAD.pack(len(told)) + told + data)
        with naming_a_full_disk(self._folder, len(record)):
            view = memoryview(record)
            while view:
                view = view[os.write(self._open[index], view) :]
        self._unsynced.add(index)

    def sync(self) -> None:
        """Make what was written durable."""
        for index in list(self._unsynced):
            descriptor = self._open.get(index)
            if descriptor is not None:
                os.fsync(descriptor)
        self._unsynced.clear()

    def close(self, index: int | None = None) -> None:
        """Let go of a window's file, or of all."""
        for one in [index] if index is not None else list(self._open):
            descriptor = self._open.pop(one, None)
            if descriptor is not None:
                os.close(descriptor)
            self._unsynced.discard(one)

    def restore(self, window: OpenWindow) -> int:
        """Give a window what earlier drivers kept of it; how many items that settles.

        What was kept of other input is passed over: the digest of ids and inputs must be the same.
        """
        before = len(window.answers) + len(window.dead)
        for path in sorted(self._folder.glob(f"{window.window.index:06}-*")):
            for _, payload in frames_in(path.read_bytes()):
                (length,) = _HEAD.unpack_from(payload)
                head = json.loads(payload[_HEAD.size : _HEAD.size + length])
                if head["input"] != window.window.fingerprint:
                    continue
                if "dead" in head:
                    self._restore_dead(window, head)
                    continue
                answers = unpack(head["kind"], payload[_HEAD.size + length :])
                for place, answer in zip(head["places"], answers, strict=True):
                    if place not in window.answers and place not in window.dead:
                        window.answers[place] = answer
        return len(window.answers) + len(window.dead) - before

    @staticmethod
    def _restore_dead(window: OpenWindow, head: dict[str, Any]) -> None:
        place, told = head["dead"], head["failure"]
        if place not in window.answers and place not in window.dead:
            failure = Failure(FailureKind(told["kind"]), told["error_type"], told["message"], told["traceback"])
            window.dead[place] = DeadLetter(place, head["attempts"], failure)
