"""How far each RPC of a container reaches: to its own ids, or as far as the modal client offers."""

import contextlib
import pickle
from types import SimpleNamespace

import pytest
from grpclib import GRPCError, Status

from gpuserve.engine.container_rpcs import OWN_DOOR_RPCS, OWN_ID_RPCS, WORKSPACE_RPCS
from gpuserve.engine.protocol import RPCS, api_pb2
from gpuserve.engine.rpc import Access

ELSEWHERE = """
import modal
app = modal.App("elsewhere")

@app.function()
def stranger(): pass
"""
FORGED = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS, data=pickle.dumps("forged"))
# Each RPC of own ids that is built, and a request that names another container's.
ANOTHERS = {
    "ContainerStop": lambda one: {"task_id": one.task},
    "FunctionCallGetDataIn": lambda one: {"function_call_id": one.call},
    "FunctionCallPutDataOut": lambda one: {"function_call_id": one.call, "data_chunks": [{"data": b"x", "index": 1}]},
    "FunctionFinishInputs": lambda one: {"function_call_id": one.call},
    "FunctionGetDynamicConcurrency": lambda one: {"function_id": one.function, "max_concurrency": 9},
    "FunctionGetInputs": lambda one: {"function_id": one.function},
    "FunctionPutInputs": lambda one: {"function_call_id": one.call, "inputs": [{"idx": 1}]},
    "FunctionPutOutputs": lambda one: {"outputs": [{"input_id": one.input, "result": FORGED}]},
}
UNKNOWN = SimpleNamespace(task="ta-unknown", call="fc-unknown", function="fu-unknown", input="in-unknown")
# What comes for an input that is no longer the container's own comes to these, and is dropped.
DROPPING = {"FunctionCallPutDataOut", "FunctionPutOutputs"}


@pytest.fixture(scope="module")
def stranger(deployed, client, modal_cli):
    """A function of another app."""
    modal_cli(deployed.environment, "deploy", ELSEWHERE)
    return client.call("FunctionGet", app_name="elsewhere", object_tag="stranger").function_id


def test_each_rpc_that_a_container_may_call_reaches_its_own_ids_or_the_workspace(deployed):
    admitted = set()
    for name in RPCS:
        with contextlib.suppress(GRPCError):
            Access(task_id="ta-one").caller(name, {})
            admitted.add(name)

    tables = (OWN_DOOR_RPCS, OWN_ID_RPCS, WORKSPACE_RPCS)
    assert sorted(name for table in tables for name in table) == sorted(admitted)
    assert OWN_ID_RPCS & deployed.core.servicer.implemented == set(ANOTHERS)
    for name in OWN_DOOR_RPCS:
        fields = [field.name for field in RPCS[name].request.DESCRIPTOR.fields]
        assert not [field for field in fields if field.endswith(("_id", "_ids", "_jwt"))], name


@pytest.mark.parametrize("name", ANOTHERS)
def test_to_anothers_id_is_closed(name, doors):
    first, second = doors.hold("first"), doors.hold("second")
    wire = doors.open(first.task)

    anothers, nobodys = (wire.refusal(name, **ANOTHERS[name](one)) for one in (second, UNKNOWN))

    assert anothers is (None if name in DROPPING else Status.PERMISSION_DENIED)
    assert nobodys in ({None} if name in DROPPING else {Status.PERMISSION_DENIED, Status.NOT_FOUND})
    assert not doors.core.scheduler.tasks[second.task].stopping
    assert list(doors.core.calls.calls[second.call].inputs) == [0]
    doors.let_go(second, "undisturbed")
    assert doors.value(second.call) == "undisturbed"
    assert second.call not in doors.core.streams._out


def test_a_container_scales_and_cancels_what_is_another_apps_as_the_modal_client_offers(doors, ghosts, stranger):
    held, wire = doors.hold("second"), doors.open(ghosts.make(stranger).id)

    scaled = wire.call(
        "FunctionUpdateSchedulingParams", function_id=held.function, settings={"scaledown_window": 77}
    ).current_settings
    cancelled = wire.refusal("FunctionCallCancel", function_call_id=held.call)

    assert scaled.scaledown_window == 77
    assert cancelled is None
    assert doors.core.calls.calls[held.call].cancelled
    doors.running.remove(held)


def test_a_container_ends_no_container_of_another_app_but_for_a_call_that_it_began(doors, ghosts, stranger):
    held, wire = doors.hold("second"), doors.open(ghosts.make(stranger).id)
    ending = {"function_call_id": held.call, "terminate_containers": True}

    assert wire.refusal("FunctionCallCancel", **ending) is Status.PERMISSION_DENIED
    assert not doors.core.calls.calls[held.call].cancelled
    assert not doors.core.scheduler.tasks[held.task].stopping
    own = wire.call("FunctionMap", function_id=held.function).function_call_id
    assert wire.refusal("FunctionCallCancel", function_call_id=own, terminate_containers=True) is None

    colleague = doors.open(ghosts.make(doors.function("first")).id)
    assert colleague.refusal("FunctionCallCancel", **ending) is None
    assert doors.core.calls.calls[held.call].cancelled
    task = doors.core.scheduler.tasks.get(held.task)
    assert task is None or task.stopping
    doors.running.remove(held)
