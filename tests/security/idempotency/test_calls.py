"""A repeated key has one effect and one answer, for every RPC of calls, functions and containers."""

import pickle
import uuid

import pytest
from grpclib import Status

from gpuserve.engine.protocol import RPCS, api_pb2
from gpuserve.engine.rpc import _REPEATABLE
from gpuserve.engine.services.calls import CallService
from gpuserve.engine.services.containers import ContainerService
from gpuserve.engine.services.functions import FunctionService
from gpuserve.engine.services.streams import StreamService

STATUS = api_pb2.GenericResult.GenericStatus


def inputs(*indices):
    arguments = api_pb2.FunctionInput(args=pickle.dumps(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE)
    return [api_pb2.FunctionPutInputsItem(idx=idx, input=arguments) for idx in indices]


def begun(w, function, *indices):
    reply = w.call("FunctionMap", function_id=function, pipelined_inputs=inputs(*indices))
    return reply.function_call_id, [item.input_id for item in reply.pipelined_inputs]


def totals(w, function):
    """The inputs of each call of a function."""
    listed = w.call("FunctionCallList", function_id=function).function_calls
    return {one.function_call_id: one.total_inputs for one in listed}


def class_create(w):
    app = w.app()
    return w.case({"app_id": app}, {"app_id": w.app()}, lambda: len(w.core.registry.classes))


def function_create(w):
    app, one = w.app(), api_pb2.Function(function_name="f", module_name="m")
    other = api_pb2.Function(function_name="f", module_name="other")

    def definition():
        return [function.definition_id for function in w.core.registry.functions_of(app)]

    return w.case({"app_id": app, "function": one}, {"app_id": app, "function": other}, definition)


def function_precreate(w):
    app = w.app()
    fields = {"app_id": app, "function_name": "f"}
    return w.case(fields, {**fields, "function_name": "g"}, lambda: len(w.core.registry.functions_of(app)))


def function_bind_params(w):
    function = w.function()
    fields = {"function_id": function, "serialized_params": b"\x0a\x00"}
    return w.case(fields, {**fields, "serialized_params": b""}, lambda: len(w.core.registry.bound))


def function_update_scheduling(w):
    function = w.function()

    def settings(most):
        return {"function_id": function, "settings": api_pb2.AutoscalerSettings(max_containers=most)}

    def between():
        w.call("FunctionUpdateSchedulingParams", **settings(9))

    return w.case(
        settings(1), settings(2), lambda: w.core.registry.functions[function].overrides.max_containers, between
    )


def function_map(w):
    function = w.function()
    fields = {"function_id": function, "pipelined_inputs": inputs(0, 1)}
    return w.case(fields, {**fields, "pipelined_inputs": inputs(0)}, lambda: totals(w, function))


def function_put_inputs(w):
    function = w.function()
    call, _ids = begun(w, function)
    fields = {"function_call_id": call, "inputs": inputs(0, 1)}
    return w.case(fields, {**fields, "inputs": inputs(2)}, lambda: totals(w, function))


def function_finish_inputs(w):
    call, _ids = begun(w, w.function())
    fields = {"function_call_id": call, "num_inputs": 0}
    return w.case(fields, {**fields, "num_inputs": 1}, between=lambda: None)


def function_call_cancel(w):
    call, _ids = begun(w, w.function(), 0, 1)
    fields = {"function_call_id": call}

    def outputs():
        return len(w.call("FunctionGetOutputs", function_call_id=call).outputs)

    return w.case(fields, {**fields, "terminate_containers": True}, outputs)


def function_get_inputs(w, ghost):
    _call, ids = begun(w, ghost.function_id, 0, 1, 2)
    fields = {"function_id": ghost.function_id, "batch_max_size": 1}

    def given():
        return [w.core.calls.inputs[ident].task_id for ident in ids]

    return w.case(fields, {**fields, "batch_max_size": 2}, given)


def taken(w, ghost, wire, *indices):
    call, ids = begun(w, ghost.function_id, *indices)
    wire.call("FunctionGetInputs", function_id=ghost.function_id, batch_max_size=len(ids))
    return call, ids


def function_put_outputs(w, ghost, wire):
    call, ids = taken(w, ghost, wire, 0, 1)

    def result(ident, data):
        value = api_pb2.GenericResult(status=STATUS.GENERIC_STATUS_SUCCESS, data=data)
        return {"outputs": [api_pb2.FunctionPutOutputsItem(input_id=ident, result=value)]}

    def outputs():
        found = w.call("FunctionGetOutputs", function_call_id=call).outputs
        return [item.result.data for item in found]

    return w.case(result(ids[0], b"1"), result(ids[1], b"2"), outputs)


def function_put_data_out(w, ghost, wire):
    call, _ids = taken(w, ghost, wire, 0)

    def chunk(data):
        return {"function_call_id": call, "data_chunks": [api_pb2.DataChunk(data=data)]}

    return w.case(chunk(b"1"), chunk(b"2"), lambda: [one.data for one in w.core.streams.data_out(call).chunks])


def task_result(w, ghost, _wire):
    def failure(text):
        return {"result": api_pb2.GenericResult(status=STATUS.GENERIC_STATUS_INIT_FAILURE, exception=text)}

    return w.case(failure("one"), failure("other"), lambda: w.core.scheduler.pool(ghost.function_id).crashes_at_start)


def container_ready(_w, ghost, _wire):
    def between():
        ghost.ready = False

    return _w.case({}, None, lambda: ghost.ready, between)


def container_stop(w, ghost):
    def between():
        ghost.stopping = False

    fields = {"task_id": ghost.id}
    return w.case(fields, {**fields, "graceful": True}, lambda: ghost.stopping, between)


CLIENTS = {
    "ClassCreate": class_create,
    "FunctionBindParams": function_bind_params,
    "FunctionCallCancel": function_call_cancel,
    "FunctionCreate": function_create,
    "FunctionFinishInputs": function_finish_inputs,
    "FunctionMap": function_map,
    "FunctionPrecreate": function_precreate,
    "FunctionPutInputs": function_put_inputs,
    "FunctionUpdateSchedulingParams": function_update_scheduling,
}
CONTAINERS = {
    "ContainerServerLifecycleReady": container_ready,
    "ContainerStop": lambda w, ghost, _wire: container_stop(w, ghost),
    "FunctionCallPutDataOut": function_put_data_out,
    "FunctionGetInputs": lambda w, ghost, _wire: function_get_inputs(w, ghost),
    "FunctionPutOutputs": function_put_outputs,
    "TaskResult": task_result,
}


@pytest.mark.parametrize("rpc", CLIENTS)
def test_a_repeated_key_of_a_client_has_one_effect_and_one_answer(rpc, world):
    world.replay(rpc, CLIENTS[rpc](world))


@pytest.mark.parametrize("rpc", CONTAINERS)
def test_a_repeated_key_of_a_container_has_one_effect_and_one_answer(rpc, world, ghosts, connect):
    ghost = ghosts.make(world.function())
    wire = connect(f"unix://{world.core._door_path(ghost)}")

    world.replay(rpc, CONTAINERS[rpc](world, ghost, wire), wire)


def test_every_built_rpc_of_calls_that_changes_something_is_tried_here(engine):
    here = (CallService, ContainerService, FunctionService, StreamService)
    built = {one for one in engine.core.servicer.implemented if not RPCS[one].streams}

    changing = {one for one in built - _REPEATABLE if any(hasattr(service, one) for service in here)}

    assert changing == {*CLIENTS, *CONTAINERS}


def test_a_containers_key_that_a_client_has_used_is_another_key(world, ghosts, connect):
    ghost, key = ghosts.make(world.function()), uuid.uuid4().hex
    wire, function = connect(f"unix://{world.core._door_path(ghost)}"), world.function()
    fields = {"function_id": function, "pipelined_inputs": inputs(0)}

    theirs = world.call("FunctionMap", idempotency=key, **fields).function_call_id
    own = wire.call("FunctionMap", idempotency=key, **fields).function_call_id

    assert theirs != own
    assert totals(world, function) == {theirs: 1, own: 1}


def test_a_key_made_to_look_like_a_containers_is_a_clients(world, ghosts, connect):
    ghost, key = ghosts.make(world.function()), uuid.uuid4().hex
    queue = world.queue(b"a", b"b")
    wire = connect(f"unix://{world.core._door_path(ghost)}")

    own = wire.call("QueueGet", idempotency=key, queue_id=queue).values
    client = world.call("QueueGet", idempotency=f"{ghost.id}:{key}", queue_id=queue).values

    assert [*own, *client] == [b"a", b"b"]


def test_a_call_that_is_refused_changes_nothing_and_may_be_repeated(world):
    function, key = world.function(), uuid.uuid4().hex
    fields = {"function_call_id": "fc-unknown", "inputs": inputs(0), "idempotency": key}

    assert [world.refusal("FunctionPutInputs", **fields) for _ in range(3)] == [Status.NOT_FOUND] * 3
    assert totals(world, function) == {}
