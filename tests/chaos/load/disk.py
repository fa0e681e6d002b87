"""What a disk may hold after a power cut, worked out from a trace of the system calls of the program that wrote to it.

What was synced is there. Of what was not, each write may be there, be missing, or be torn at 512 bytes; and each name
that was made, moved or removed since its folder was synced may have reached the disk, or not. Nothing orders the one
after the other: it is less than any file system gives, so what survives here survives on all of them.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

TRACED = "openat,write,pwrite64,lseek,ftruncate,fallocate,fsync,fdatasync,rename,unlink,unlinkat,mkdir,rmdir,syncfs"
OPTIONS = ("-ff", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={TRACED}", "-e", "signal=none", "-T", "-y", "-xx")
STAMPS = ("--absolute-timestamps=format:unix,precision:ns", "-s", "100000000")
_LINE = re.compile(r"(\d+\.\d+) (\w+)\((.*)\) += (-?\d+)(?:<[^>]*>)?(?: \([^)]*\))? <(\d+\.\d+)>$")
_WORD = re.compile(r'"((?:\\x[0-9a-f]{2})*)"|(?:AT_FDCWD|(\d+))<((?:\\x[0-9a-f]{2})*)>|(-?\d+)|([A-Z][A-Z_|]+)')
_SECTOR = 512


@dataclass(frozen=True)
class Event:
    """A system call that succeeded: when it had, and what it was given."""

    at: float
    name: str
    paths: tuple[str, ...]
    text: bytes
    number: int
    handle: int
    flags: str
    result: int


def trace(prefix: Path, root: Path) -> list[Event]:
    """The calls that concern what lies under *root*, in the order in which they ended."""
    events = []
    for log in prefix.parent.glob(f"{prefix.name}.*"):
        for line in log.read_text().splitlines():
            found = _LINE.match(line)
            event = _event(*found.groups()) if found and int(found[4]) >= 0 else None
            if event and all(path.startswith(str(root)) for path in event.paths):
                events.append(event)
    return sorted(events, key=lambda event: event.at)


def _event(begun: str, name: str, arguments: str, result: str, took: str) -> Event | None:
    paths, texts, numbers, handle, flags = [], [], [], -1, ""
    for text, descriptor, opened, number, words in _WORD.findall(arguments):
        if opened:
            handle = int(descriptor or -1)
            paths.append(_bytes(opened).decode())
        elif number:
            numbers.append(int(number))
        elif words:
            flags += words
        else:
            texts.append(_bytes(text))
    if name in {"rename", "mkdir", "rmdir", "unlink"}:
        paths = [text.decode() for text in texts]
    elif name in {"openat", "unlinkat"}:
        paths = [str(Path(paths[0] if paths else "/", texts[0].decode()))]
    if not paths:
        return None
    offset = numbers[-1] if numbers else 0
    text = texts[0] if texts and name in {"write", "pwrite64"} else b""
    return Event(float(begun) + float(took), name, tuple(paths), text, offset, handle, flags, int(result))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class Inode:
    """A file's changes in their order, of which the first *synced* are on disk."""

    changes: list[tuple[int, bytes | None]] = field(default_factory=list)
    synced: int = 0

    def content(self, dice: random.Random | None) -> bytes:
        """With all changes; or with those on disk, and whatever the *dice* say of the others."""
        data = bytearray()
        how = dice.choice(("none", "all", "some", "torn")) if dice else "all"
        for number, (offset, text) in enumerate(self.changes):
            if number < self.synced or how == "all" or (how == "some" and dice.random() < 0.5):
                _apply(data, offset, text)
            elif how == "torn" and text is not None:
                for start in range(0, len(text), _SECTOR):
                    if dice.random() < 0.5:
                        _apply(data, offset + start, text[start : start + _SECTOR])
        return bytes(data)


def _apply(data: bytearray, offset: int, text: bytes | None) -> None:
    if text is None:
        del data[offset:]
    size = offset + len(text or b"")
    data.extend(b"\0" * (size - len(data)))
    if text is not None:
        data[offset:size] = text


@dataclass
class Change:
    """A name that was made, moved or removed; on disk once one of its folders was synced."""

    old: str
    new: str
    inode: Inode | None
    folders: set[str]
    synced: bool = False


class Disk:
    """Takes in events one by one."""

    def __init__(self, root: Path) -> None:
        self.root, self.names, self.changes = str(root), {str(root): None}, list[Change]()
        self.offsets: dict[int, int] = {}

    def take(self, event: Event) -> None:
        """One more call has ended."""
        path = event.paths[0]
        if event.name == "openat":
            self._open(event, path)
        elif event.name in {"write", "pwrite64"}:
            self._write(event, path)
        elif event.name == "lseek":
            self.offsets[event.handle] = event.result
        elif event.name == "ftruncate":
            self._file(path).changes.append((event.number, None))
        elif event.name in {"fsync", "fdatasync"}:
            self._sync(path)
        elif event.name == "syncfs":
            for one in list(self.names):
                self._sync(one)
        elif event.name == "mkdir":
            self._change("", path, None)
        elif event.name in {"unlink", "unlinkat", "rmdir"}:
            self._change(path, "", None)
        elif event.name == "rename":
            self._change(path, event.paths[1], self.names.get(path))
        else:
            raise ValueError(
                f"the trace has a call that changes a disk and that this replay does not know: {event.name}"
            )

    def _file(self, path: str) -> Inode:
        return self.names.get(path) or Inode()  # one whose name is gone is nobody's

    def _open(self, event: Event, path: str) -> None:
        if path not in self.names and "O_CREAT" in event.flags:
            self._change("", path, Inode())
        if "O_TRUNC" in event.flags:
            self._file(path).changes.append((0, None))
        self.offsets[event.result] = 0

    def _write(self, event: Event, path: str) -> None:
        offset = event.number if event.name == "pwrite64" else self.offsets.get(event.handle, 0)
        self.offsets[event.handle] = offset + event.result
        self._file(path).changes.append((offset, event.text[: event.result]))

    def _sync(self, path: str) -> None:
        inode = self.names.get(path)
        if inode is not None:
            inode.synced = len(inode.changes)
            return
        for change in self.changes:
            change.synced = change.synced or path in change.folders

    def _change(self, old: str, new: str, inode: Inode | None) -> None:
        folders = {str(Path(one).parent) for one in (old, new) if one}
        change = Change(old, new, inode, folders)
        for earlier in self.changes if old and new else ():
            earlier.folders = {_moved(one, old, new) for one in earlier.folders}
        self.changes.append(change)
        _rename(self.names, change)

    def after_a_cut(self, target: Path, dice: random.Random) -> None:
        """Write to *target* what the disk may hold if the power fails now."""
        names: dict[str, Inode | None] = {self.root: None}
        how = dice.choice(("none", "all", "some", "first"))
        until = dice.randint(0, len(self.changes))
        for number, change in enumerate(self.changes):
            kept = {"none": False, "all": True, "some": dice.random() < 0.5, "first": number < until}[how]
            parent = str(Path(change.new or change.old).parent)
            if not (change.synced or kept) or parent not in names:
                continue
            if change.old and change.old not in names:  # the old name never reached the disk, the new one did
                names.update({change.new: change.inode} if change.inode else {})
            else:
                _rename(names, change)
        for path, inode in names.items():
            place = target / Path(path).relative_to(self.root)
            if inode is None:
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(inode.content(dice))


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(f"{old}/") else path


def _rename(names: dict[str, Inode | None], change: Change) -> None:
    if not change.old:
        names[change.new] = change.inode
    elif not change.new:
        for one in [one for one in names if one == change.old or one.startswith(f"{change.old}/")]:
            del names[one]
    else:
        moved = {_moved(one, change.old, change.new): inode for one, inode in names.items()}
        names.clear()
        names.update(moved)
