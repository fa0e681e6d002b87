"""What a key means: one effect an RPC, also for attempts that overlap, and after a restart."""

import hashlib
import uuid

from grpclib import Status

from gpuserve.engine import LocalEngine
from gpuserve.engine.protocol import api_pb2

CREATE = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING


def name():
    return f"n-{uuid.uuid4().hex}"


def test_without_a_key_each_call_has_its_effect(world):
    queue = world.queue()
    for _ in range(3):
        world.call("QueuePut", queue_id=queue, values=[b"a"])

    assert world.items(queue) == [b"a"] * 3


def test_one_key_serves_each_rpc_by_itself(world):
    queue, key = world.queue(), name()

    for _ in range(3):
        world.call("QueuePut", idempotency=key, queue_id=queue, values=[b"a"])
    assert world.items(queue) == [b"a"]

    taken = [world.call("QueueGet", idempotency=key, queue_id=queue).values for _ in range(3)]
    assert taken == [[b"a"]] * 3
    assert world.items(queue) == []


def test_attempts_that_overlap_share_one_item(world):
    queue, key = world.queue(), name()
    fields = {"queue_id": queue, "timeout": 20.0}
    attempts = [world.request("QueueGet", fields, key) for _ in range(3)]
    put = world.request("QueuePut", {"queue_id": queue, "values": [b"a", b"b"]})

    *taken, _empty = world.together(*attempts, put)

    assert [list(one.values) for one in taken] == [[b"a"]] * 3
    assert world.items(queue) == [b"b"]


def test_a_refusal_is_not_kept_so_that_a_later_attempt_may_succeed(world):
    label, key = name(), name()
    look_up = {"deployment_name": label, "idempotency": key}

    assert world.refusal("DictGetOrCreate", **look_up) is Status.NOT_FOUND
    made = world.call("DictGetOrCreate", deployment_name=label, object_creation_type=CREATE).dict_id

    assert world.call("DictGetOrCreate", **look_up).dict_id == made


def test_a_retry_after_the_engines_restart_has_no_second_effect(tmp_path, connect, credentials):
    home, key = tmp_path / "kept", name()
    with LocalEngine(home) as engine:
        wire = connect(engine.environment["MODAL_SERVER_URL"], credentials(engine.environment))
        queue = wire.call("QueueGetOrCreate", deployment_name="q", object_creation_type=CREATE).queue_id
        fields = {"queue_id": queue, "values": [b"a"]}
        wire.call("QueuePut", idempotency=key, **fields)
    with LocalEngine(home) as engine:
        wire = connect(engine.environment["MODAL_SERVER_URL"], credentials(engine.environment))
        wire.call("QueuePut", idempotency=key, **fields)
        changed = wire.refusal("QueuePut", idempotency=key, queue_id=queue, values=[b"b"])
        length = wire.call("QueueLen", queue_id=queue).len

    assert length == 1
    assert changed is Status.INVALID_ARGUMENT


def test_a_damaged_block_of_a_volume_file_may_be_sent_again(world):
    volume, data = world.made("Volume"), b"whole"
    block = api_pb2.VolumePutFiles2Request.Block(contents_sha256=hashlib.sha256(data).digest())
    file = api_pb2.VolumePutFiles2Request.File(path="a", size=len(data), blocks=[block])
    asked = {"volume_id": volume, "files": [file]}
    world.upload(world.call("VolumePutFiles2", **asked).missing_blocks[0].put_url, b"wrong")

    assert world.refusal("VolumePutFiles2", **asked) is Status.INVALID_ARGUMENT
    again = world.call("VolumePutFiles2", **asked).missing_blocks
    assert len(again) == 1
    world.upload(again[0].put_url, data)

    assert list(world.call("VolumePutFiles2", **asked).missing_blocks) == []
    assert world.files(volume) == {"a": "whole"}
