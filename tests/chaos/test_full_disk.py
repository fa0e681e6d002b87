"""What the disk does not take has not happened, in memory either; when there is room again, all goes on."""

import asyncio
import os
import uuid

import pytest
from grpclib import GRPCError

from gpuserve.engine.protocol import api_pb2

CREATE = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
BIG = 1 << 20


@pytest.fixture
def full(engine):
    """Let the engine's database grow no more, or grow again."""

    def limit(is_full):
        async def set_limit():
            database = engine.core.store._db
            pages = database.execute("PRAGMA page_count").fetchone()[0] if is_full else 1 << 30
            database.execute(f"PRAGMA max_page_count = {pages}")

        asyncio.run_coroutine_threadsafe(set_limit(), engine._loop).result(10)

    yield limit
    limit(False)


def full_for(rpc, name, /, **fields):
    """Whether a call is refused because the disk is full."""
    with pytest.raises(GRPCError) as error:
        rpc(name, **fields)
    return "is full. Nothing that was acknowledged is lost" in (error.value.message or "")


def publish(rpc, app, name, code):
    definition = api_pb2.Function(function_name="f", module_name="m", function_serialized=code)
    function = rpc("FunctionCreate", app_id=app, function=definition).function_id
    state = api_pb2.APP_STATE_DEPLOYED
    return {"app_id": app, "name": name, "app_state": state, "function_ids": {"f": function}}


def test_a_deployment_that_does_not_fit_leaves_the_one_before_in_force(rpc, full):
    name = uuid.uuid4().hex
    app = rpc("AppGetOrCreate", app_name=name, object_creation_type=CREATE).app_id
    rpc("AppPublish", **publish(rpc, app, name, b"one"))
    function = rpc("FunctionGet", app_name=name, object_tag="f").function_id

    def in_force():
        history = rpc("AppDeploymentHistory", app_id=app).app_deployment_histories
        return rpc("FunctionGetSerialized", function_id=function).function_serialized[:3], len(history)

    second = publish(rpc, app, name, b"two" + os.urandom(BIG))
    full(True)
    key = uuid.uuid4().hex
    assert full_for(rpc, "AppPublish", idempotency=key, **second)
    assert in_force() == (b"one", 1)
    full(False)

    assert in_force() == (b"one", 1)
    rpc("AppPublish", idempotency=key, **second)
    assert in_force() == (b"two", 2)


def test_an_app_that_does_not_fit_is_not_there(rpc, full):
    full(True)
    begun = []

    def begin(name):
        begun.append(name)
        rpc("AppGetOrCreate", app_name=name, object_creation_type=CREATE)

    with pytest.raises(GRPCError, match="is full"):
        list(map(begin, (f"app-{number}" for number in range(200))))
    *_, before, name = begun
    with pytest.raises(GRPCError, match="no deployed app"):
        rpc("AppLookup", app_name=name)
    assert rpc("AppLookup", app_name=before).app_id
    full(False)
    assert rpc("AppGetOrCreate", app_name=name, object_creation_type=CREATE).app_id


def test_values_that_do_not_fit_are_refused_and_those_before_them_are_kept(rpc, full):
    shelf = rpc("DictGetOrCreate", object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL).dict_id
    queue = rpc("QueueGetOrCreate", object_creation_type=api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL).queue_id
    rpc("DictUpdate", dict_id=shelf, updates=[api_pb2.DictEntry(key=b"a", value=b"1")])
    full(True)

    big = os.urandom(BIG)
    updates = [api_pb2.DictEntry(key=b"a", value=b"2"), api_pb2.DictEntry(key=b"b", value=big)]
    assert full_for(rpc, "DictUpdate", dict_id=shelf, updates=updates)
    assert full_for(rpc, "QueuePut", queue_id=queue, values=[b"a", big])

    assert rpc("DictGet", dict_id=shelf, key=b"a").value == b"1"
    assert rpc("QueueLen", queue_id=queue).len == 0
    full(False)
    rpc("DictUpdate", dict_id=shelf, updates=updates)
    assert rpc("DictGet", dict_id=shelf, key=b"a").value == b"2"
