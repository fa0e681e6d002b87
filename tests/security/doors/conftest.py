"""A deployed app whose containers wait, and connections to their sockets."""

import pickle
from dataclasses import dataclass

import pytest

from gpuserve.engine.protocol import api_pb2

APP = """
import modal
app = modal.App("doors")
gate = modal.Queue.from_name("gate", create_if_missing=True)
ready = modal.Queue.from_name("ready", create_if_missing=True)

def held(name):
    ready.put(name, partition=name)
    return gate.get(partition=name)

@app.function(max_containers=1)
def first(): return held("first")

@app.function(max_containers=1)
def second(): return held("second")

@app.function(max_containers=1)
def second_generator():
    ready.put(1, partition="generator")
    while True:
        value = gate.get(partition="generator")
        if value is None: return
        yield value
"""
NO_ARGUMENTS = api_pb2.FunctionInput(args=pickle.dumps(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE)


@dataclass(frozen=True)
class Held:
    """A call whose only input runs in a real container, until it is let go."""

    name: str
    function: str
    call: str
    input: str
    task: str


class Doors:
    """The deployed app, its calls, and connections to its containers' sockets."""

    def __init__(self, engine, client, connect, on_loop):
        self.core, self.client, self._connect, self._on_loop = engine.core, client, connect, on_loop
        names = {"deployment_name": "gate", "object_creation_type": api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING}
        self.gate = client.call("QueueGetOrCreate", **names).queue_id
        self.ready = client.call("QueueGetOrCreate", **{**names, "deployment_name": "ready"}).queue_id
        self.running = []

    def function(self, name):
        return self.client.call("FunctionGet", app_name="doors", object_tag=name).function_id

    def begin(self, name):
        """Begin a call of one input."""
        return self.client.call(
            "FunctionMap",
            function_id=self.function(name),
            function_call_type=api_pb2.FUNCTION_CALL_TYPE_UNARY,
            pipelined_inputs=[api_pb2.FunctionPutInputsItem(idx=0, input=NO_ARGUMENTS)],
        )

    def hold(self, name, partition=None):
        """Begin a call and wait until a container runs it."""
        begun = self.begin(name)
        partition = partition or name
        assert self.client.call("QueueGet", queue_id=self.ready, partition_key=partition.encode(), timeout=30).values
        item = begun.pipelined_inputs[0].input_id
        task = self.core.calls.inputs[item].task_id
        assert task
        held = Held(partition, self.function(name), begun.function_call_id, item, task)
        self.running.append(held)
        return held

    def open(self, task, metadata=None):
        """Connect to a container's socket, as the container does."""
        return self._connect(f"unix://{self.core.run_folder}/{task}.sock", metadata)

    def let_go(self, held, value):
        """Give the container what it waits for."""
        self.running = [one for one in self.running if one is not held]
        self.client.call("QueuePut", queue_id=self.gate, partition_key=held.name.encode(), values=[pickle.dumps(value)])

    def outputs(self, call, **fields):
        return self.client.call("FunctionGetOutputs", function_call_id=call, **{"timeout": 30.0, **fields}).outputs

    def value(self, call):
        """The call's only result."""
        return pickle.loads(self.outputs(call)[0].result.data)

    def tidy(self):
        for held in self.running:
            self.let_go(held, None)
            self.outputs(held.call)


@pytest.fixture(scope="module")
def deployed(engine, modal_cli):
    modal_cli(engine.environment, "deploy", APP)
    return engine


@pytest.fixture
def doors(deployed, client, connect, on_loop):
    made = Doors(deployed, client, connect, on_loop)
    yield made
    made.tidy()
