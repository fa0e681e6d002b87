"""One client's waiting calls do not shut out its other calls."""

from gpuserve.engine.protocol import api_pb2


def test_more_than_a_hundred_waiting_calls_leave_room_for_the_one_that_ends_them(engine, client):
    queue = client.call("QueueGetOrCreate", object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL).queue_id
    waiting = [client.request("QueueGet", {"queue_id": queue, "timeout": 25.0}) for _ in range(300)]
    put = client.request("QueuePut", {"queue_id": queue, "values": [b"x"] * 300})

    *taken, _empty = client.together(*waiting, put)

    assert [list(one.values) for one in taken] == [[b"x"]] * 300
