"""An engine killed at any point of a call: its client repeats the call, which then has happened once.

Each case is one RPC; the engine is killed before each SQL statement, each change of a file and the answer in turn.
"""

import contextlib
import hashlib
import random
import sys
import urllib.request
import uuid
from dataclasses import dataclass

import pytest
from grpclib import GRPCError
from grpclib.exceptions import StreamTerminatedError

from gpuserve.engine.protocol import api_pb2

ANONYMOUS = api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL
File, Entry = api_pb2.VolumePutFiles2Request.File, api_pb2.DictEntry


@dataclass
class Case:
    """What is sent; the state before and after; and the answer, where it matters."""

    fields: dict
    state: object
    before: object
    after: object
    answer: object = None


class Made:
    """Fresh objects on an engine, and how they look."""

    def __init__(self, engine):
        self.engine, self.rpc = engine, engine.rpc

    def object(self, kind, **fields):
        return getattr(self.rpc(f"{kind}GetOrCreate", object_creation_type=ANONYMOUS, **fields), f"{kind.lower()}_id")

    def queue(self):
        ident = self.object("Queue")
        self.rpc("QueuePut", queue_id=ident, values=[b"a", b"b", b"c"])
        return ident

    def dict(self, **entries):
        return self.object("Dict", data=[Entry(key=key.encode(), value=value) for key, value in entries.items()])

    def items(self, ident):
        return [one.value for one in self.rpc("QueueNextItems", queue_id=ident).items]

    def value(self, ident, key):
        reply = self.rpc("DictGet", dict_id=ident, key=key)
        return reply.value if reply.found else None

    def blocks(self, *contents):
        """What the client says of blocks: their digests, without the zeros that they end in."""
        digests = [hashlib.sha256(one.rstrip(b"\0")).digest() for one in contents]
        return [api_pb2.VolumePutFiles2Request.Block(contents_sha256=digest) for digest in digests]

    def upload(self, ident, **contents):
        """The request that puts these files into a volume, whose blocks have been sent."""
        files = [File(path=f"d/{name}", size=len(one), blocks=self.blocks(one)) for name, one in contents.items()]
        fields = {"volume_id": ident, "files": files, "disallow_overwrite_existing_files": True}
        for missing in self.rpc("VolumePutFiles2", **fields).missing_blocks:
            data = list(contents.values())[missing.file_index].rstrip(b"\0")
            with urllib.request.urlopen(urllib.request.Request(missing.put_url, method="PUT", data=data), timeout=10):
                pass
        return fields

    def volume(self, **contents):
        ident = self.object("Volume")
        self.rpc("VolumePutFiles2", **self.upload(ident, **contents))
        return ident

    def files(self, ident):
        folder = self.engine.home / "volumes" / ident
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def queue_get(made):
    ident = made.queue()
    left = [b"c"]
    return Case({"queue_id": ident, "n_values": 2}, lambda: made.items(ident), [b"a", b"b", b"c"], left, [b"a", b"b"])


def queue_put(made):
    ident, all_ = made.object("Queue"), [b"a", b"b"]
    return Case({"queue_id": ident, "values": all_}, lambda: made.items(ident), [], all_)


def dict_update(made):
    ident = made.dict()
    fields = {"dict_id": ident, "updates": [Entry(key=b"a", value=b"1")], "if_not_exists": True}
    return Case(fields, lambda: made.value(ident, b"a"), None, b"1", True)


def dict_pop(made):
    ident = made.dict(a=b"1")
    return Case({"dict_id": ident, "key": b"a"}, lambda: made.value(ident, b"a"), b"1", None, b"1")


def secret_update(made):
    ident = made.object("Secret", env_dict={"A": "1"})
    fields = {"secret_id": ident, "updates": [api_pb2.SecretUpdateRequest.Update(key="B", value="2")]}

    def keys():
        return list(made.rpc("SecretGetInfo", secret_id=ident).metadata.keys)

    return Case(fields, keys, ["A"], ["A", "B"])


def volume_put(made):
    ident = made.object("Volume")
    contents = {uuid.uuid4().hex: uuid.uuid4().bytes for _ in range(2)}
    after = {f"d/{name}": data for name, data in contents.items()}
    return Case(made.upload(ident, **contents), lambda: made.files(ident), {}, after)


def volume_remove(made):
    ident = made.volume(a=b"1", b=b"2")
    fields = {"volume_id": ident, "path": "d", "recursive": True}
    return Case(fields, lambda: made.files(ident), {"d/a": b"1", "d/b": b"2"}, {})


def volume_copy(made):
    ident, before = made.volume(a=b"1", b=b"2"), {"d/a": b"1", "d/b": b"2"}
    fields = {"volume_id": ident, "src_paths": ["d"], "dst_path": "e", "recursive": True}
    return Case(fields, lambda: made.files(ident), before, {**before, "e/a": b"1", "e/b": b"2"})


def volume_delete(made):
    ident, before = made.volume(a=b"1"), (True, {"d/a": b"1"})

    def there():
        with contextlib.suppress(GRPCError):
            made.rpc("VolumeGetById", volume_id=ident)
            return True, made.files(ident)
        return False, made.files(ident)

    return Case({"volume_id": ident}, there, before, (False, {}))


def app_publish(made):
    name = uuid.uuid4().hex
    app = made.rpc("AppGetOrCreate", app_name=name, object_creation_type=api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING)
    definition = api_pb2.Function(function_name="f", module_name="m")
    function = made.rpc("FunctionCreate", app_id=app.app_id, function=definition).function_id
    state = api_pb2.APP_STATE_DEPLOYED
    fields = {"app_id": app.app_id, "name": name, "app_state": state, "function_ids": {"f": function}}
    made.rpc("AppPublish", **fields)
    made.rpc("FunctionCreate", app_id=app.app_id, function=definition)

    def versions():
        history = made.rpc("AppDeploymentHistory", app_id=app.app_id).app_deployment_histories
        return [one.version for one in history], made.rpc("FunctionGet", app_name=name, object_tag="f").function_id

    return Case({**fields, "deployment_tag": "v2"}, versions, ([1], function), ([2, 1], function))


CASES = {
    "QueueGet": queue_get,
    "QueuePut": queue_put,
    "DictUpdate": dict_update,
    "DictPop": dict_pop,
    "SecretUpdate": secret_update,
    "VolumePutFiles2": volume_put,
    "VolumeRemoveFile2": volume_remove,
    "VolumeCopyFiles2": volume_copy,
    "VolumeDelete": volume_delete,
    "AppPublish": app_publish,
}
ANSWERS = {"QueueGet": "values", "DictUpdate": "created", "DictPop": "value"}


def tried(engine, rpc, point):
    """Kill the engine at one point of a call, start it anew and repeat the call; false where the call ended before."""
    case, key = CASES[rpc](Made(engine)), f"die-{point}-{uuid.uuid4().hex}"
    assert case.state() == case.before
    try:
        engine.rpc(rpc, key, **case.fields)
    except (ConnectionError, StreamTerminatedError):
        engine.reap()
    else:
        return False
    engine.start()

    assert case.state() in (case.before, case.after)
    answer = engine.rpc(rpc, key, attempt=1, **case.fields)
    assert case.state() == case.after
    if rpc in ANSWERS:
        assert getattr(answer, ANSWERS[rpc]) == case.answer
    assert engine.rpc(rpc, key, attempt=2, **case.fields) == answer
    assert case.state() == case.after
    return True


@pytest.fixture(scope="module")
def engine(tmp_path_factory, chaos):
    running = chaos.Engine(tmp_path_factory.mktemp("e"), (sys.executable, str(chaos.LOAD / "dying_engine.py"))).start()
    yield running
    running.stop()


DICE = random.Random(2)


@pytest.mark.parametrize(
    ("rpc", "point"),
    [("QueueGet", "answer"), *((rpc, DICE.randrange(2, 12)) for rpc in ("VolumePutFiles2", "VolumeCopyFiles2"))],
)
def test_a_call_repeated_after_a_kill_has_happened_once(rpc, point, engine):
    assert tried(engine, rpc, point)


@pytest.mark.heavy
@pytest.mark.parametrize("rpc", CASES)
@pytest.mark.timeout(600)
def test_a_call_repeated_after_a_kill_at_any_point_has_happened_once(rpc, engine):
    point = 0
    while tried(engine, rpc, point):
        point += 1
    print(f"{rpc}: killed at {point} points")
    assert point >= 5
