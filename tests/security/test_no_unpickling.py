"""The engine hands pickles on and opens none: told by the interpreter's own audit of its process."""

import json
import pickle
import sys

import pytest
from grpclib import Status

from gpuserve.engine.protocol import api_pb2

# Runs the engine under an audit hook, then unpickles something itself: the hook must have seen that.
AUDITED = """
import json, os, pathlib, sys
found = []
sys.addaudithook(lambda event, details: found.append(str(details)) if event == "pickle.find_class" else None)
from gpuserve.engine.__main__ import main
report = pathlib.Path(sys.argv.pop(1))
code = main()
before = list(found)
import pickle
pickle.loads(pickle.dumps(pathlib.PurePosixPath("control")))
report.write_text(json.dumps({"found": before, "control": found[len(before):], "pid": os.getpid()}))
sys.exit(code)
"""
APP = """
import dataclasses, fractions, pathlib
import modal
app = modal.App("pickles")
notes = modal.Dict.from_name("notes", create_if_missing=True)
line = modal.Queue.from_name("line", create_if_missing=True)
here = pathlib.Path(__file__).parent

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int

class Refused(Exception):
    def __init__(self, point): super().__init__(point); self.point = point

@app.function()
def move(point, by): return Point(point.x + by, point.y)

@app.function()
def refuse(point): raise Refused(point)

@app.function(serialized=True, name="from_a_pickle")
def from_a_pickle(fraction): return fraction.numerator

@app.function()
def path(n):
    for x in range(n): yield Point(x, 0)

@app.function()
def keep(point):
    notes[point] = {point: [point]}
    line.put(point)

@app.cls()
class Walker:
    step: int = modal.parameter(default=1)
    @modal.method()
    def walk(self, point): return Point(point.x + self.step, point.y)

@app.local_entrypoint()
def main():
    origin = Point(0, 7)
    assert move.remote(origin, 2) == Point(2, 7)
    assert list(move.map([origin] * 5, kwargs={"by": 1})) == [Point(1, 7)] * 5
    assert move.spawn(origin, 3).get() == Point(3, 7)
    assert list(path.remote_gen(3)) == [Point(0, 0), Point(1, 0), Point(2, 0)]
    assert from_a_pickle.remote(fractions.Fraction(7, 2)) == 7
    assert Walker(step=5).walk.remote(origin) == Point(5, 7)
    assert Walker.with_options(timeout=90)().walk.remote(origin) == Point(1, 7)
    try: refuse.remote(origin)
    except Refused as error: assert error.point == origin
    else: raise AssertionError("nothing was raised")
    keep.remote(origin)
    assert notes[origin] == {origin: [origin]} and notes.pop(origin) and line.get() == origin
    with modal.Dict.ephemeral() as brief: brief["point"] = origin
    with modal.Queue.ephemeral() as brief: brief.put_many([origin] * 3); assert brief.get_many(3) == [origin] * 3
    large = b"x" * 20_000_000
    assert move.remote(Point(large, 0), b"y").x == large + b"y"
    (here / "passed").write_text("yes")
"""


@pytest.fixture
def audited(start_engine, tmp_path):
    """An audited engine, and a function that stops it and returns what its hook saw."""
    report = tmp_path / "audit.json"
    engine = start_engine(command=(sys.executable, "-c", AUDITED, str(report)))

    def finish():
        assert engine.stop() == 0, engine.errors.read_text()
        seen = json.loads(report.read_text())
        assert seen["pid"] == engine.pid
        assert "PurePosixPath" in str(seen["control"])  # the hook works in that very process
        return seen["found"]

    return engine, finish


def test_no_class_is_looked_up_while_apps_of_every_form_run(audited, modal_cli, tmp_path_factory):
    engine, finish = audited

    modal_cli(engine.environment, "run", APP)

    assert list(tmp_path_factory.getbasetemp().glob("app*/passed"))
    assert finish() == []


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_passes_through_every_field_unopened(audited, connect, tmp_path):
    engine, finish = audited
    wire, marker = connect(engine.environment["MODAL_SERVER_URL"], engine.token()), tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(marker))
    named = {"deployment_name": "bombs", "object_creation_type": api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING}
    app = wire.call("AppCreate", description="bombs", app_state=api_pb2.APP_STATE_INITIALIZING).app_id

    notes = wire.call("DictGetOrCreate", **named, data=[api_pb2.DictEntry(key=b"0", value=bomb)]).dict_id
    wire.call("DictUpdate", dict_id=notes, updates=[api_pb2.DictEntry(key=bomb, value=bomb)])
    assert wire.call("DictGet", dict_id=notes, key=bomb).value == bomb
    assert len(wire.call("DictContents", dict_id=notes, keys=True, values=True)) == 2
    assert wire.call("DictPop", dict_id=notes, key=bomb).value == bomb

    line = wire.call("QueueGetOrCreate", **named).queue_id
    wire.call("QueuePut", queue_id=line, partition_key=bomb, values=[bomb, bomb])
    assert wire.call("QueueNextItems", queue_id=line, partition_key=bomb).items[0].value == bomb
    assert list(wire.call("QueueGet", queue_id=line, partition_key=bomb, n_values=2).values) == [bomb, bomb]

    schema = api_pb2.ClassParameterInfo(
        schema=[api_pb2.ClassParameterSpec(name="x", type=api_pb2.PARAM_TYPE_PICKLE, pickle_default=bomb)]
    )
    definition = api_pb2.Function(
        function_name="Bombs.*",
        module_name="bombs",
        definition_type=api_pb2.Function.DEFINITION_TYPE_SERIALIZED,
        function_serialized=bomb,
        class_serialized=bomb,
        is_class=True,
        class_parameter_info=schema,
    )
    function = wire.call("FunctionCreate", app_id=app, function=definition).function_id
    owner = wire.call("ClassCreate", app_id=app).class_id
    wire.call("AppPublish", app_id=app, name="bombs", app_state=api_pb2.APP_STATE_DEPLOYED,
              function_ids={"Bombs.*": function}, class_ids={"Bombs": owner})  # fmt: skip
    bound = wire.call("FunctionBindParams", function_id=function, serialized_params=bomb).bound_function_id
    assert wire.call("FunctionGetSerialized", function_id=function).class_serialized == bomb
    assert wire.call("ClassGet", app_name="bombs", object_tag="Bombs").class_id == owner

    # nothing is queued, so no container starts that would rightly unpickle its own function
    call = wire.call("FunctionMap", function_id=bound).function_call_id
    chunk = api_pb2.DataChunk(data=bomb, data_format=api_pb2.DATA_FORMAT_PICKLE)
    wire.call("FunctionCallPutDataOut", function_call_id=call, data_chunks=[chunk])
    result = api_pb2.GenericResult(status=1, data=bomb, serialized_tb=bomb, tb_line_cache=bomb)
    wire.call("FunctionPutOutputs", outputs=[api_pb2.FunctionPutOutputsItem(input_id="in-none", result=result)])
    assert wire.refusal("AppGetLayout", app_id=app) is None
    assert wire.refusal("MountPutFile", data=bomb, sha256_hex="0" * 64) is Status.INVALID_ARGUMENT

    assert finish() == []
    assert not marker.exists()
    with pickle.loads(bomb):  # it would have gone off
        assert marker.exists()


def test_an_engine_that_starts_on_a_state_full_of_pickles_opens_none(audited, connect, start_engine, tmp_path):
    engine, finish = audited
    wire, marker = connect(engine.environment["MODAL_SERVER_URL"], engine.token()), tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(marker))
    app = wire.call("AppCreate", description="kept", app_state=api_pb2.APP_STATE_INITIALIZING).app_id
    definition = api_pb2.Function(function_name="kept", module_name="kept", function_serialized=bomb)
    function = wire.call("FunctionCreate", app_id=app, function=definition).function_id
    wire.call(
        "AppPublish", app_id=app, name="kept", app_state=api_pb2.APP_STATE_DEPLOYED, function_ids={"kept": function}
    )
    assert finish() == []

    report = tmp_path / "second.json"
    again = start_engine(home=engine.home, command=(sys.executable, "-c", AUDITED, str(report)))
    second = connect(again.environment["MODAL_SERVER_URL"], again.token())
    assert second.call("FunctionGet", app_name="kept", object_tag="kept").function_id == function
    assert again.stop() == 0

    assert json.loads(report.read_text())["found"] == []
    assert not marker.exists()
