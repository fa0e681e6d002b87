"""A container's own socket: what it opens, and that it acts for no other container."""

import pickle

import pytest
from grpclib import Status
from grpclib.exceptions import StreamTerminatedError

from gpuserve.engine.container_rpcs import CONTAINER_RPCS
from gpuserve.engine.protocol import RPCS, api_pb2

NO_ARGUMENTS = api_pb2.FunctionInput(args=pickle.dumps(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE)
DONE = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, data=pickle.dumps("forged"))


def test_every_rpc_that_is_not_a_containers_is_refused_even_with_the_engines_token(doors):
    first = doors.hold("first")
    others = set(RPCS) - CONTAINER_RPCS
    assert len(others) > 200

    for metadata in ({}, doors.client.metadata):
        answers = doors.open(first.task, metadata).statuses(others)
        assert {name for name, status in answers.items() if status is not Status.PERMISSION_DENIED} == set()


def test_a_door_is_its_task_whatever_the_metadata_says(doors):
    first, second = doors.hold("first"), doors.hold("second")
    wire = doors.open(first.task, {"x-modal-task-id": second.task, "x-modal-container": second.task})

    assert wire.refusal("ContainerStop", task_id=second.task) is Status.PERMISSION_DENIED
    assert wire.refusal("FunctionGetInputs", function_id=second.function) is Status.PERMISSION_DENIED


def test_a_container_fetches_no_inputs_of_another_function(doors):
    first, second = doors.hold("first"), doors.hold("second")
    queued = doors.begin("second")  # its only container is busy
    wire = doors.open(first.task)

    assert wire.refusal("FunctionGetInputs", function_id=second.function) is Status.PERMISSION_DENIED
    assert wire.refusal("FunctionGetInputs", function_id="fu-unknown") is Status.PERMISSION_DENIED
    assert doors.core.calls.queued(second.function) == 1

    doors.client.call("FunctionCallCancel", function_call_id=queued.function_call_id)
    doors.let_go(second, "mine")
    assert doors.value(second.call) == "mine"


def test_results_for_an_input_that_a_container_does_not_hold_are_dropped(doors):
    first, second = doors.hold("first"), doors.hold("second")
    queued = doors.begin("second")
    forged = [
        api_pb2.FunctionPutOutputsItem(input_id=item, result=DONE, data_format=api_pb2.DATA_FORMAT_PICKLE)
        for item in (second.input, queued.pipelined_inputs[0].input_id, "in-unknown")
    ]

    doors.open(first.task).call("FunctionPutOutputs", outputs=forged)

    assert list(doors.outputs(second.call, timeout=0.0)) == []
    assert list(doors.outputs(queued.function_call_id, timeout=0.0)) == []
    doors.client.call("FunctionCallCancel", function_call_id=queued.function_call_id)
    doors.let_go(second, "the real one")
    assert doors.value(second.call) == "the real one"


def test_a_container_stops_no_other(doors):
    first, second = doors.hold("first"), doors.hold("second")
    wire = doors.open(first.task)

    assert wire.refusal("ContainerStop", task_id=second.task) is Status.PERMISSION_DENIED
    assert wire.refusal("ContainerStop", task_id=second.task, graceful=True) is Status.PERMISSION_DENIED
    assert wire.refusal("ContainerStop") is Status.PERMISSION_DENIED
    assert not doors.core.scheduler.tasks[second.task].stopping

    doors.let_go(second, "alive")
    assert doors.value(second.call) == "alive"


def test_a_failed_start_is_the_callers_own_functions(doors, ghosts):
    second = doors.hold("second")
    queued = doors.begin("second")
    ghost = ghosts.make(doors.function("first"))

    doors.open(ghost.id).call("TaskResult", result=api_pb2.GenericResult(status=2, exception="forged"))

    assert ghost.failed_start
    assert not doors.core.scheduler.tasks[second.task].failed_start
    assert doors.core.calls.queued(second.function) == 1
    assert list(doors.outputs(queued.function_call_id, timeout=0.0)) == []
    doors.client.call("FunctionCallCancel", function_call_id=queued.function_call_id)


def test_a_heartbeat_hands_over_the_callers_own_cancellations_only(doors, ghosts):
    one, other = ghosts.make(doors.function("first")), ghosts.make(doors.function("second"))
    one.cancels, other.cancels = {"in-one"}, {"in-other"}

    mine = doors.open(one.id).call("ContainerHeartbeat")

    assert list(mine.cancel_input_event.input_ids) == ["in-one"]
    assert other.cancels == {"in-other"}
    theirs = doors.open(other.id).call("ContainerHeartbeat")
    assert list(theirs.cancel_input_event.input_ids) == ["in-other"]


def test_a_container_writes_into_no_stream_of_a_call_that_it_does_not_run(doors):
    first, running = doors.hold("first"), doors.hold("second_generator", "generator")
    wire = doors.open(first.task)
    forged = api_pb2.DataChunk(data=pickle.dumps("forged"), data_format=api_pb2.DATA_FORMAT_PICKLE, index=1)

    wire.call("FunctionCallPutDataOut", function_call_id=running.call, data_chunks=[forged])
    wire.call("FunctionCallPutDataOut", function_call_id="fc-unknown", data_chunks=[forged])

    assert "fc-unknown" not in doors.core.streams._out
    doors.client.call("QueuePut", queue_id=doors.gate, partition_key=b"generator", values=[pickle.dumps("real")])
    doors.let_go(running, None)
    doors.outputs(running.call)
    chunks = doors.client.call("FunctionCallGetDataOut", function_call_id=running.call)
    assert pickle.loads(chunks[0].data) == "real"


def test_a_container_reads_no_request_body_of_a_call_that_it_does_not_run(doors):
    first, second = doors.hold("first"), doors.hold("second")
    body = api_pb2.DataChunk(data=b"somebody's password", data_format=api_pb2.DATA_FORMAT_ASGI)

    async def put():
        doors.core.streams.data_in(second.call).put(body)
        doors.core.streams.data_in(second.call).end()

    doors._on_loop(put())

    own = doors.open(second.task).call("FunctionCallGetDataIn", function_call_id=second.call)
    assert [chunk.data for chunk in own] == [b"somebody's password"]
    stranger = doors.open(first.task)
    assert stranger.refusal("FunctionCallGetDataIn", function_call_id=second.call) is Status.PERMISSION_DENIED
    assert stranger.refusal("FunctionCallGetDataIn", function_call_id="fc-unknown") is Status.PERMISSION_DENIED
    assert "fc-unknown" not in doors.core.streams._in


def test_a_container_adds_inputs_only_to_calls_that_it_began(doors):
    first, second = doors.hold("first"), doors.hold("second")
    wire = doors.open(first.task)
    more = [api_pb2.FunctionPutInputsItem(idx=1, input=NO_ARGUMENTS)]

    assert wire.refusal("FunctionPutInputs", function_call_id=second.call, inputs=more) is Status.PERMISSION_DENIED
    assert wire.refusal("FunctionFinishInputs", function_call_id=second.call) is Status.PERMISSION_DENIED
    assert list(doors.core.calls.calls[second.call].inputs) == [0]

    own = wire.call("FunctionMap", function_id=second.function)
    assert len(wire.call("FunctionPutInputs", function_call_id=own.function_call_id, inputs=more).inputs) == 1
    wire.call("FunctionCallCancel", function_call_id=own.function_call_id)


def test_a_container_hangs_no_call_under_anothers_input(doors):
    first, second = doors.hold("first"), doors.hold("second")
    wire = doors.open(first.task)

    forged = wire.call("FunctionMap", function_id=second.function, parent_input_id=second.input).function_call_id
    own = wire.call("FunctionMap", function_id=second.function, parent_input_id=first.input).function_call_id

    def below(call):
        graph = doors.client.call("FunctionGetCallGraph", function_call_id=call)
        return {line.function_call_id for line in graph.function_calls} - {call}

    assert below(second.call) == set()
    assert below(first.call) == {own}
    assert forged != own


def test_a_container_clears_no_outputs_of_a_call_that_it_did_not_begin(doors):
    first, second = doors.hold("first"), doors.hold("second")
    doors.let_go(second, "kept")
    assert doors.value(second.call) == "kept"

    seen = doors.open(first.task).call(
        "FunctionGetOutputs", function_call_id=second.call, clear_on_success=True, timeout=5.0
    )

    assert len(seen.outputs) == 1  # any container of the workspace may read by id, as Modal has it
    assert not doors.core.calls.calls[second.call].cleared
    doors.outputs(second.call, clear_on_success=True)
    assert doors.core.calls.calls[second.call].cleared


def test_a_containers_idempotency_keys_are_its_own(doors):
    first, second = doors.hold("first"), doors.hold("second")
    fields = {"queue_id": doors.gate, "partition_key": b"keys"}
    doors.client.call("QueuePut", **fields, values=[b"a", b"b", b"c"])

    taken = [
        wire.call("QueueGet", idempotency="the same", **fields).values[0]
        for wire in (doors.client, doors.open(first.task), doors.open(second.task))
    ]

    assert taken == [b"a", b"b", b"c"]


def test_a_door_closes_with_its_task_also_for_connections_that_are_open(doors, ghosts):
    ghost = ghosts.make(doors.function("first"))
    wire = doors.open(ghost.id)
    fields = {"queue_id": doors.gate, "partition_key": b"late"}
    wire.call("QueuePut", **fields, values=[b"while it lived"])

    ghosts.end(ghost)

    with pytest.raises((ConnectionError, FileNotFoundError, StreamTerminatedError)):
        wire.call("QueuePut", **fields, values=[b"after its end"])
    assert doors.client.call("QueueLen", **fields).len == 1


def test_only_a_running_task_is_served_its_own_rpcs(doors, ghosts):
    ghost = ghosts.make(doors.function("first"))
    wire = doors.open(ghost.id)

    ghosts.forget(ghost)

    for name in ("ContainerHello", "ContainerHeartbeat", "TaskResult", "ContainerServerLifecycleReady"):
        assert wire.refusal(name) is Status.PERMISSION_DENIED
    assert wire.refusal("FunctionGetInputs", function_id=ghost.function_id) is Status.PERMISSION_DENIED


def test_a_container_overwrites_no_secret(doors):
    first = doors.hold("first")
    wire = doors.open(first.task)
    name = {"deployment_name": "guarded", "env_dict": {"KEY": "before"}}
    made = doors.client.call("SecretGetOrCreate", object_creation_type=1, **name)

    overwrite = api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
    changed = {**name, "env_dict": {"KEY": "after"}}

    assert wire.refusal("SecretGetOrCreate", object_creation_type=overwrite, **changed) is Status.PERMISSION_DENIED
    assert wire.refusal("SecretGetOrCreate", object_creation_type=1, **changed) is None
    assert doors.core.secrets.environment_of([made.secret_id]) == {"KEY": "before"}
