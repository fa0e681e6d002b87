"""The power fails at any instant: the state can be opened, and what was acknowledged is in it."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import time
import urllib.request

import pytest

from gpuserve.engine.file_steps import FileSteps
from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.services.dicts import DictService
from gpuserve.engine.services.queues import QueueService
from gpuserve.engine.services.secrets import SecretService
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.store import Store

CREATE = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
Entry, File = api_pb2.DictEntry, api_pb2.VolumePutFiles2Request.File


class Writer:
    """A client whose operations are begun and told at known times."""

    def __init__(self, engine, ledger):
        self.engine, self.ledger = engine, ledger
        self.entries, self.times = [], []

    def do(self, kind, op, rpc, fields, answer=None, **arguments):
        entry = self.ledger.Entry(str(len(self.entries)), kind, op, arguments)
        begun = time.time()
        reply = self.engine.rpc(rpc, **fields)
        self.entries.append(entry)
        self.times.append((begun, time.time(), answer(reply) if answer else None))
        return reply

    def until(self, cut):
        """What had been begun at a time, with what had been told."""
        found = []
        for entry, (begun, told, answer) in zip(self.entries, self.times, strict=True):
            if begun < cut:
                known = answer if told < cut else self.ledger.UNTOLD
                found.append(self.ledger.Entry(entry.name, entry.kind, entry.op, entry.args, known))
        return found

    def upload(self, volume, key, value, paths):
        data = value.encode() * 300
        block = api_pb2.VolumePutFiles2Request.Block(contents_sha256=hashlib.sha256(data).digest())
        files = [File(path=path, size=len(data), blocks=[block]) for path in paths]
        fields = {"volume_id": volume, "files": files}
        for missing in self.engine.rpc("VolumePutFiles2", **fields).missing_blocks[:1]:
            request = urllib.request.Request(missing.put_url, method="PUT", data=data)
            urllib.request.urlopen(request, timeout=10).close()
        self.do("files", "set", "VolumePutFiles2", fields, key=key, value=value)

    def source(self, text):
        digest = hashlib.sha256(text).hexdigest()
        self.do("written", "set", "MountPutFile", {"sha256_hex": digest, "data": text}, key=digest, value=digest)

    def publish(self, number):
        app = self.engine.rpc("AppGetOrCreate", app_name="app", object_creation_type=CREATE).app_id
        code = api_pb2.Function(function_name="f", module_name="m", function_serialized=os.urandom(9000))
        function = self.engine.rpc("FunctionCreate", app_id=app, function=code).function_id
        fields = {
            "app_id": app,
            "name": "app",
            "app_state": api_pb2.APP_STATE_DEPLOYED,
            "function_ids": {"f": function},
        }
        self.do("deploy", "deploy", "AppPublish", {**fields, "deployment_tag": f"v{number}"}, version=number)

    def work(self, rounds, dice):
        rpc = self.engine.rpc
        ids = {kind: rpc(f"{kind}GetOrCreate", deployment_name=kind, object_creation_type=CREATE) for kind in KINDS}
        book, line = ids["Dict"].dict_id, ids["Queue"].queue_id
        volume, secret = ids["Volume"].volume_id, ids["Secret"].secret_id
        for number in range(rounds):
            value, key = f"v{number}", f"k{dice.randrange(3)}"
            updates = [Entry(key=key.encode(), value=value.encode())]
            self.do("dict", "set", "DictUpdate", {"dict_id": book, "updates": updates}, key=key, value=value)
            fields = {"dict_id": book, "key": b"k1"}
            self.do("dict", "take", "DictPop", fields, lambda reply: reply.value.decode() or None, key="k1")
            items = [f"{value}-{one}" for one in range(2)]
            fields = {"queue_id": line, "values": [item.encode() for item in items]}
            self.do("queue", "put", "QueuePut", fields, items=items)
            fields = {"queue_id": line, "n_values": 1}
            self.do("queue", "take", "QueueGet", fields, lambda reply: [item.decode() for item in reply.values], most=1)
            update = api_pb2.SecretUpdateRequest.Update(key=key, value=value)
            self.do("secret", "set", "SecretUpdate", {"secret_id": secret, "updates": [update]}, key=key, value=value)
            self.upload(volume, "group", value, ["group/1", "group/deep/2"])
            self.upload(volume, f"own{number}", value, [f"own{number}/1", f"own{number}/2"])
            if number % 3 == 2:
                fields = {"volume_id": volume, "path": f"own{number}", "recursive": True}
                self.do("files", "set", "VolumeRemoveFile2", fields, key=f"own{number}", value=None)
            self.source(value.encode() * 300)
            self.publish(number)
        return ids


KINDS = ("Dict", "Queue", "Volume", "Secret")


def seen(home):
    """What a state folder has, once the engine has put it in order."""
    with contextlib.closing(Store(home)) as store:
        assert store.one("PRAGMA integrity_check")[0] == "ok"
        steps = FileSteps(store, home / "volumes")
        registry, secrets = Registry(store), SecretService(store)
        DictService(store), QueueService(store)  # their tables, if the cut came before they were made
        ids = {kind: ident for ident, kind in store.query("SELECT id, kind FROM objects")}
        entries = store.query("SELECT key, value FROM dict_entries")
        items = store.query("SELECT value FROM queue_items ORDER BY entry")
        deployed = registry.deployed("app", "main")
        history = deployed.history if deployed else []
        assert list(steps._staging.iterdir()) == []
        return {
            "dict": {key.decode(): value.decode() for key, value in entries},
            "queue": [value.decode() for (value,) in items],
            "secret": secrets.environment_of([ids["secret"]]) if "secret" in ids else {},
            "written": {path.name: digest(path) for path in (home / "mounts").glob("[!.]*")},
            "files": groups(home / "volumes" / ids["volume"]) if "volume" in ids else {},
            "version": int(history[-1].tag[1:]) if history else None,
            "history": [one.tag for one in history],
        }


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def groups(folder):
    """What each group of two files holds: both the same, or neither is there."""
    found = {}
    for group in folder.iterdir() if folder.exists() else ():
        files = [path for path in group.rglob("*") if path.is_file()]
        texts = {path.read_bytes() for path in files}
        text = texts.pop().decode() if len(texts) == 1 and len(files) == 2 else ""
        if files:
            found[group.name] = next((v for v in (f"v{n}" for n in range(99)) if v * 300 == text), f"torn: {files}")
    return found


@pytest.fixture(scope="module")
def written(chaos, tmp_path_factory, debian_packages):
    """A client's operations on an engine whose system calls were traced from its first start on."""
    if shutil.which("strace") is None:
        debian_packages("strace")  # without it nothing tells what was synced when
    folder = tmp_path_factory.mktemp("p")
    tracer = ("strace", *chaos.disk.OPTIONS, *chaos.disk.STAMPS, "-o", str(folder / "trace"))
    engine = chaos.Engine(folder, (*tracer, sys.executable, "-m", "gpuserve.engine")).start()
    writer = Writer(engine, chaos.ledger)
    writer.work(12, random.Random(1))
    os.kill(engine.pid, signal.SIGKILL)
    engine.process.wait(60)
    engine.process.stdout.close()
    return writer, chaos.disk.trace(folder / "trace", engine.home), engine.home


def cut(written, chaos, folder, seed, points):
    """Cut the power at so many instants, and return what was wrong."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    writer, events, home = written
    wrong = []
    disk, done = chaos.disk.Disk(home), 0
    for number, point in enumerate(sorted(dice.randrange(len(events) + 1) for _ in range(points))):
        while done < point:
            disk.take(events[done])
            done += 1
        now = events[point].at if point < len(events) else float("inf")
        place = folder / str(number)
        place.mkdir(mode=0o700)
        disk.after_a_cut(place, dice)
        entries = writer.until(now)
        try:
            found = {"noted": {}, **seen(place)}
        except Exception as error:
            wrong.append(f"cut {number} before event {point}: {type(error).__name__}: {error}")
        else:
            wrong += [f"cut {number} before event {point}: {one}" for one in chaos.ledger.problems(entries, found)]
        shutil.rmtree(place)
    return wrong


def test_after_a_power_cut_what_was_acknowledged_is_there(written, chaos, tmp_path):
    assert cut(written, chaos, tmp_path, seed=1, points=100) == []


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(4))
def test_after_a_thousand_power_cuts_what_was_acknowledged_is_there(seed, written, chaos, tmp_path):
    assert cut(written, chaos, tmp_path, seed, points=500) == []
