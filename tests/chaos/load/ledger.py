"""What a client meant to do and what it was told, on disk before and after each operation; and what follows from it.

An operation is *told* (the client got an answer) or *untold* (it failed, or the client was killed meanwhile).
A told one must have happened exactly once; an untold one wholly or not at all.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNTOLD = object()


class Ledger:
    """Appends to a file, synced line by line; *acks* is a descriptor that gets a byte for each answer."""

    def __init__(self, path: Path, session: int, acks: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._session, self._acks = session, acks
        self._count, self._guard = 0, threading.Lock()

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")
        os.fsync(self._file)

    def intend(self, kind: str, op: str, **arguments: Any) -> str:
        with self._guard:
            self._count += 1
            name = f"{self._session}.{self._count}"
            self._write({"n": name, "kind": kind, "op": op, "args": arguments})
        return name

    def told(self, name: str, answer: Any) -> None:
        with self._guard:
            self._write({"n": name, "told": answer})
        os.write(self._acks, b".")

    def failed(self, name: str, error: BaseException) -> None:
        with self._guard:
            self._write({"n": name, "error": f"{type(error).__name__}: {error}"[:300]})


@dataclass
class Entry:
    """One operation."""

    name: str
    kind: str
    op: str
    args: dict[str, Any]
    answer: Any = field(default=UNTOLD)
    error: str = ""

    @property
    def told(self) -> bool:
        return self.answer is not UNTOLD


def read(path: Path) -> list[Entry]:
    """All operations in the order in which they were begun; a line that a kill cut short was never synced."""
    entries: dict[str, Entry] = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if "kind" in found:
            entries[found["n"]] = Entry(found["n"], found["kind"], found["op"], found["args"])
        elif "told" in found:
            entries[found["n"]].answer = found["told"]
        else:
            entries[found["n"]].error = found["error"]
    return list(entries.values())


def of_kind(entries: list[Entry], kind: str) -> list[Entry]:
    return [one for one in entries if one.kind == kind]


def problems_of_registers(entries: list[Entry], seen: dict[str, Any]) -> list[str]:
    """Keys that one writer at a time sets, takes and looks at: each has one of its possible values.

    Operations: ``set`` (value), ``add`` (value; told whether it was added), ``take`` and ``look`` (told the value, or
    null). It serves Dict entries, keys of secrets, files, and groups of files that are written together.
    """
    possible: dict[str, set[Any]] = {}
    found = []
    for one in entries:
        key = one.args["key"]
        before = possible.get(key, {None})
        after, problem = _step(one, before)
        if problem:
            found.append(f"{one.kind} {one.op} {one.name} of {key} was told {one.answer!r}, but {problem}: {before}")
        possible[key] = after
    for key, values in possible.items():
        if seen.get(key) not in values:
            found.append(f"{entries[0].kind} {key} is {seen.get(key)!r}; possible: {values}")
    found += [f"{key} was never written, and is {value!r}" for key, value in seen.items() if key not in possible]
    return found


def _step(one: Entry, before: set[Any]) -> tuple[set[Any], str]:
    value = one.args.get("value")
    if one.op == "set":
        return ({value}, "") if one.told else (before | {value}, "")
    if one.op == "add":
        if not one.told:
            return (before | {value} if None in before else before), ""
        if one.answer:
            return {value}, "" if None in before else "it cannot have been free"
        return (before - {None}) or {value}, "" if before - {None} else "it was free"
    if one.op == "take":
        if not one.told:
            return before | {None}, ""
        return {None}, "" if one.answer in before else "that cannot be what it was"
    if one.op == "look":
        if not one.told:
            return before, ""
        return {one.answer}, "" if one.answer in before else "that cannot be what it was"
    raise ValueError(one.op)


def problems_of_queue(entries: list[Entry], left: list[str]) -> list[str]:
    """Every told item was taken once, or waits, or went with a taker that was killed before it was told."""
    put, taken = [], []
    missing_allowed = 0
    begun: set[str] = set()
    for one in entries:
        if one.op == "put":
            begun.update(one.args["items"])
            if one.told:
                put += one.args["items"]
        elif one.told:
            taken += one.answer
        else:
            missing_allowed += one.args["most"]
    out = Counter(taken + left)
    found = [f"{item} came out {count} times" for item, count in out.items() if count > 1]
    found += [f"{item} came out and was never put" for item in out if item not in begun]
    missing = [item for item in put if item not in out]
    if len(missing) > missing_allowed:
        found.append(f"lost, with takers for {missing_allowed} that were not told: {missing}")
    order = {item: number for number, item in enumerate(item for one in entries for item in one.args.get("items", ()))}
    numbers = [order[item] for item in taken + left if item in order]
    if numbers != sorted(numbers):
        found.append(f"out of order: {taken + left}")
    return found


def problems_of_deployments(entries: list[Entry], version: int | None, history: list[str]) -> list[str]:
    """The newest told version, or an untold one after it, is in force; each told one is in the history once."""
    possible: set[int | None] = {None}
    told, begun = [], set()
    for one in entries:
        number = one.args["version"]
        begun.add(f"v{number}")
        possible = {number} if one.told else possible | {number}
        told += [f"v{number}"] if one.told else []
    counted = Counter(history)
    found = [] if version in possible else [f"version {version} answers; possible: {possible}"]
    found += [f"{tag} is {counted[tag]} times in the history {history}" for tag in told if counted[tag] != 1]
    found += [f"{tag} is in the history and was never begun" for tag in counted if tag not in begun]
    found += [f"{tag} is in the history {count} times" for tag, count in counted.items() if count > 1]
    return found


def problems_of_calls(entries: list[Entry]) -> list[str]:
    """A told result is the right one."""
    return [
        f"call {one.name} {one.op}{one.args['given']} was told {one.answer}, not {one.args['expected']}"
        for one in entries
        if one.told and one.answer != one.args["expected"]
    ]


def problems(entries: list[Entry], seen: dict[str, Any]) -> list[str]:
    """All that is wrong with what was *seen*, given what was begun and told."""
    found = []
    for kind in ("dict", "secret", "files", "written", "noted"):
        found += problems_of_registers(of_kind(entries, kind), seen[kind])
    found += problems_of_queue(of_kind(entries, "queue"), seen["queue"])
    found += problems_of_deployments(of_kind(entries, "deploy"), seen["version"], seen["history"])
    return found + problems_of_calls(of_kind(entries, "call"))
