"""A client program with the real modal client: a mixed load, each operation in the ledger before and after.

Usage: client.py FOLDER SEED SESSION ACKS. It reads commands from standard input, one a line, and answers each with
a line: ``pause`` (once no operation is under way), ``resume``, ``observe`` (all that it can see), ``litter MARK``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
from ledger import Ledger, of_kind, read

GROUPS, SIZES = ("a", "b", "c/d"), (0, 1_000, 200_000)
AFTER_A_FAILURE_S = 0.05


def content(generation: str, size: int) -> bytes:
    line = f"{generation}\n".encode()
    return (line * (size // len(line) + 1))[:size] + line


class Load:
    """Threads that each work on something of their own, one operation at a time."""

    def __init__(self, folder: Path, seed: str, session: int, acks: int) -> None:
        self.folder, self.seed, self.session = folder, seed, session
        self.ledger = Ledger(folder / "ledger", session, acks)
        self.dict = modal.Dict.from_name("dict", create_if_missing=True)
        self.queue = modal.Queue.from_name("queue", create_if_missing=True)
        self.volume = modal.Volume.from_name("files", create_if_missing=True)
        self.go, self.idle = threading.Event(), threading.Condition()
        self.busy = 0
        self.nap = threading.Event()

    def run(self, name: str, step: Callable[[random.Random, int], None]) -> None:
        dice = random.Random(f"{self.seed} {self.session} {name}")
        number = 0
        while True:
            self.go.wait()
            with self.idle:
                self.busy += 1
            if self.go.is_set():
                number += 1
                step(dice, number)
            with self.idle:
                self.busy -= 1
                self.idle.notify_all()

    def pause(self) -> None:
        self.go.clear()
        with self.idle:
            self.idle.wait_for(lambda: not self.busy)

    def do(self, kind: str, op: str, act: Callable[[], Any], **arguments: Any) -> Any:
        name = self.ledger.intend(kind, op, **arguments)
        try:
            answer = act()
        except Exception as error:
            self.ledger.failed(name, error)
            self.nap.wait(AFTER_A_FAILURE_S)  # the engine may be down
            return None
        self.ledger.told(name, answer)
        return answer

    # -- what is done ------------------------------------------------------------------------------

    def dicts(self, dice: random.Random, number: int) -> None:
        key, value = f"k{dice.randrange(5)}", f"{self.session}-{number}"
        op = dice.choice(["set", "set", "add", "take", "look"])
        acts = {
            "set": lambda: self.dict.put(key, value) and None,
            "add": lambda: self.dict.put(key, value, skip_if_exists=True),
            "take": lambda: self.dict.pop(key, None),
            "look": lambda: self.dict.get(key),
        }
        self.do("dict", op, acts[op], key=key, value=value)

    def puts(self, dice: random.Random, number: int) -> None:
        items = [f"{self.session}-{number}-{one}" for one in range(dice.randint(1, 3))]
        self.do("queue", "put", lambda: self.queue.put_many(items), items=items)

    def takes(self, dice: random.Random, _number: int) -> None:
        most, wait = dice.randint(1, 3), dice.choice([0, 0.05, 20])
        self.do("queue", "take", lambda: self.taken(most, wait), most=most)

    def taken(self, most: int, wait: float) -> list[str]:
        if not wait:
            return [item for item in self.queue.get_many(most, block=False) if item is not None]
        return self.queue.get_many(most, timeout=wait)

    def files(self, dice: random.Random, number: int) -> None:
        group = dice.choice(GROUPS)
        if dice.random() < 0.2:
            self.do("files", "set", lambda: self.remove(group), key=group, value=None)
            return
        generation = f"{self.session}-{number}"
        self.do("files", "set", lambda: self.upload(group, generation), key=group, value=generation)

    def upload(self, group: str, generation: str) -> None:
        with self.volume.batch_upload(force=True) as batch:
            for size in SIZES:
                batch.put_file(io.BytesIO(content(generation, size)), f"/up/{group}/{size}")

    def remove(self, group: str) -> None:
        with contextlib.suppress(FileNotFoundError, modal.exception.NotFoundError):
            self.volume.remove_file(f"/up/{group}", recursive=True)

    def secrets(self, dice: random.Random, number: int) -> None:
        key, value = f"KEY_{dice.randrange(3)}", f"{self.session}-{number}"
        self.do("secret", "set", lambda: modal.Secret.from_name("keys").update({key: value}), key=key, value=value)

    def deploys(self, _dice: random.Random, _number: int) -> None:
        version = 1 + max((one.args["version"] for one in of_kind(read(self.folder / "ledger"), "deploy")), default=0)
        self.do("deploy", "deploy", lambda: self.deploy(version), version=version)

    def deploy(self, version: int) -> None:
        module = self.module(version)
        module.app.deploy(name="shelf", tag=f"v{version}")

    def module(self, version: int) -> ModuleType:
        path = self.folder / f"v{version}" / "shelf.py"
        path.parent.mkdir(exist_ok=True)
        template = Path(__file__).with_name("shelf.py").read_text()
        path.write_text(template.replace("return VERSION", f"return {version}"))
        spec = importlib.util.spec_from_file_location("shelf", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["shelf"] = module
        spec.loader.exec_module(module)
        return module

    def calls(self, dice: random.Random, number: int) -> None:
        one = f"{self.session}-{number}"
        function = {name: modal.Function.from_name("shelf", name) for name in ("double", "write", "note")}
        many = [dice.randrange(100) for _ in range(dice.randint(1, 8))]
        kind = dice.choice(["remote", "map", "spawn", "write", "note"])
        if kind == "write":
            name = f"{one}.txt"
            self.do("written", "set", lambda: function["write"].remote(name, one) and None, key=name, value=one)
        elif kind == "note":
            self.do("noted", "set", lambda: function["note"].remote(one, one) and None, key=one, value=one)
        else:
            acts = {
                "remote": lambda: [function["double"].remote(many[0])],
                "map": lambda: list(function["double"].map(many)),
                "spawn": lambda: [function["double"].spawn(many[0]).get(timeout=60)],
            }
            given = many if kind == "map" else many[:1]
            self.do("call", kind, acts[kind], given=given, expected=[2 * value for value in given])

    # -- what is seen ------------------------------------------------------------------------------

    def observe(self) -> dict[str, Any]:
        entries = [one for one in self.volume.iterdir("/", recursive=True) if one.type.name == "FILE"]
        found = {one.path: self.whole(one.path) for one in entries if not one.path.startswith("drafts/")}
        keys = modal.Function.from_name("shelf", "environment").remote()
        return {
            "dict": dict(self.dict.items()),
            "noted": dict(modal.Dict.from_name("notes", create_if_missing=True).items()),
            "queue": list(self.queue.iterate(item_poll_timeout=0)),
            "files": generations(found),
            "written": {path[8:]: text for path, text in found.items() if path.startswith("written/")},
            "secret": {name: value for name, value in keys.items() if name != "KEY_NONE"},
            "version": modal.Function.from_name("shelf", "version").remote(),
        }

    def whole(self, path: str) -> str:
        data = b"".join(self.volume.read_file(path))
        if path.startswith("written/"):
            return data.decode()
        generation = data[:-1].rpartition(b"\n")[2].decode()
        size = int(path.rpartition("/")[2])
        return generation if data == content(generation, size) else f"damaged: {len(data)} bytes, {data[-40:]!r}"


def generations(found: dict[str, str]) -> dict[str, str]:
    """The generation of each group of files; a group whose files disagree, or are not all there, is named as such."""
    seen = {}
    for group in GROUPS:
        files = {size: found.get(f"up/{group}/{size}") for size in SIZES}
        if any(files.values()):
            seen[group] = next(iter(files.values())) if len(set(files.values())) == 1 else f"torn: {files}"
    return seen


def main(folder: Path, seed: str, session: int, acks: int) -> None:
    load = Load(folder, seed, session, acks)
    with contextlib.suppress(modal.exception.AlreadyExistsError):
        modal.Secret.objects.create("keys", {"KEY_NONE": "0"}, allow_existing=True)
    if not any(one.told for one in of_kind(read(folder / "ledger"), "deploy")):
        load.deploys(random.Random(0), 0)
    steps = (load.dicts, load.puts, load.takes, load.files, load.secrets, load.deploys, load.calls)
    for step in steps:
        threading.Thread(target=load.run, args=(step.__name__, step), daemon=True).start()
    answer({"ready": True})
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "resume":
            load.go.set()
            answer({})
        elif command == "pause":
            load.pause()
            answer({})
        elif command == "observe":
            answer(load.observe())
        elif command == "litter":
            answer({"left": modal.Function.from_name("shelf", "litter").remote(argument)})


def answer(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
