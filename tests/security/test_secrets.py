"""Planted values of secrets: where they are found, and where they must not be."""

import json
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from grpclib import Status

from gpuserve.engine.protocol import RPCS, api_pb2

NAMED, INLINE, HOST = "canary-named-5d1c", "canary-inline-77af", "canary-host-e09b"
OWNER = """
import os
import modal
app = modal.App("owner")
ready = modal.Queue.from_name("ready", create_if_missing=True)
gate = modal.Queue.from_name("gate", create_if_missing=True)
inline = modal.Secret.from_dict({"INLINE": "-".join(["canary", "inline", "77af"])})
secrets = [modal.Secret.from_name("planted"), inline]

@app.function(secrets=secrets)
def held():
    print("it has", len(os.environ["NAMED"]), "characters")
    ready.put(1)
    gate.get()
    return os.environ["NAMED"] + " " + os.environ["INLINE"]

@app.function(secrets=secrets)
def fails(): raise ValueError("without a word of it")

@app.function(secrets=secrets)
def dies():
    print("last words")
    os._exit(3)
"""
OTHER = """
import json, os
import modal
app = modal.App("other")

@app.function(secrets=[modal.Secret.from_dict({"MINE": "yes"})])
def look(): return json.dumps(dict(os.environ))
"""
ARGUMENTS = api_pb2.FunctionInput(args=pickle.dumps(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE)
CREATE = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING


class Planted:
    """An engine with two apps, of which one has the secrets."""

    def __init__(self, engine, wire):
        self.engine, self.wire = engine, wire

    def begin(self, app, name):
        function = self.wire.call("FunctionGet", app_name=app, object_tag=name).function_id
        return self.wire.call(
            "FunctionMap",
            function_id=function,
            function_call_type=api_pb2.FUNCTION_CALL_TYPE_UNARY,
            pipelined_inputs=[api_pb2.FunctionPutInputsItem(idx=0, input=ARGUMENTS)],
        ).function_call_id

    def result(self, call):
        return self.wire.call("FunctionGetOutputs", function_call_id=call, timeout=30.0).outputs[0].result

    def queue(self, name):
        return self.wire.call("QueueGetOrCreate", deployment_name=name, object_creation_type=CREATE).queue_id

    def hold(self):
        """Begin a call whose container has the secrets in its environment, and wait until it runs."""
        call = self.begin("owner", "held")
        assert self.wire.call("QueueGet", queue_id=self.queue("ready"), timeout=30.0).values
        return call

    def let_go(self):
        self.wire.call("QueuePut", queue_id=self.queue("gate"), values=[pickle.dumps(None)])

    def app(self, name):
        return self.wire.call("AppGetByDeploymentName", name=name).app_id

    def gpuserve(self, *arguments):
        return subprocess.run(
            [sys.executable, "-c", "from gpuserve.cli.main import main; main()", *arguments],
            env={**os.environ, "GPUSERVE_HOME": str(self.engine.home)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout


@pytest.fixture(scope="module")
def planted(start_engine, modal_cli, dial):
    engine = start_engine(HOST_SECRET=HOST, MODAL_LOGLEVEL="DEBUG")
    wire = dial(engine.environment["MODAL_SERVER_URL"], engine.token())
    # not with `modal secret create`: there the shell's own history and argv would have it
    wire.call("SecretGetOrCreate", deployment_name="planted", object_creation_type=CREATE, env_dict={"NAMED": NAMED})
    modal_cli(engine.environment, "deploy", OWNER)
    modal_cli(engine.environment, "deploy", OTHER)
    return Planted(engine, wire)


def canaries(text):
    return {canary for canary in (NAMED, INLINE) if canary.encode() in text}


def test_the_container_that_was_given_the_secrets_has_them(planted):
    call = planted.hold()
    planted.let_go()

    assert pickle.loads(planted.result(call).data) == f"{NAMED} {INLINE}"


def test_another_apps_container_has_neither_them_nor_the_engines_environment(planted):
    seen = json.loads(pickle.loads(planted.result(planted.begin("other", "look")).data))

    assert seen["MINE"] == "yes"
    assert [name for name, value in seen.items() if "canary" in value] == []
    assert "HOST_SECRET" not in seen
    assert [name for name in seen if name.startswith("MODAL_TOKEN")] == []
    assert planted.engine.environment["MODAL_TOKEN_SECRET"] not in seen.values()


def test_no_process_shows_them_in_its_arguments(planted):
    call = planted.hold()

    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[entry.name] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
    planted.let_go()
    planted.result(call)

    assert str(planted.engine.pid) in found
    assert {pid: line for pid, line in found.items() if canaries(line)} == {}
    token = planted.engine.environment["MODAL_TOKEN_SECRET"].encode()
    assert {pid: line for pid, line in found.items() if token in line} == {}


def test_status_shows_neither_them_nor_the_token(planted):
    call = planted.hold()
    told = planted.gpuserve("local", "status", "--json")
    planted.let_go()
    planted.result(call)

    assert json.loads(told)["up"] is True
    assert canaries(told.encode()) == set()
    assert planted.engine.environment["MODAL_TOKEN_SECRET"] not in told


def test_no_log_and_no_error_has_them(planted):
    failed, died = planted.begin("owner", "fails"), planted.begin("owner", "dies")
    results = [planted.result(failed), planted.result(died)]
    missing = planted.wire.refusal(
        "SecretGetOrCreate", deployment_name="planted", object_creation_type=CREATE, required_keys=["ABSENT"]
    )
    logs = planted.wire.call("AppFetchLogs", app_id=planted.app("owner"))

    assert missing is Status.FAILED_PRECONDITION
    assert b"last words" in logs.SerializeToString()
    assert "exited with code 3" in results[1].exception
    assert [canaries(one.SerializeToString()) for one in results] == [set(), set()]
    assert canaries(logs.SerializeToString()) == set()
    assert canaries(planted.engine.errors.read_bytes()) == set()


def test_no_rpc_reads_them_back(planted):
    wire = planted.wire
    call, owner = planted.hold(), planted.app("owner")
    secret = wire.call("SecretGetOrCreate", deployment_name="planted").secret_id
    function = wire.call("FunctionGet", app_name="owner", object_tag="held").function_id
    task = wire.call("TaskList").tasks[0].task_id
    ids = {
        "app_id": owner,
        "app_name": "owner",
        "object_tag": "held",
        "name": "owner",
        "secret_id": secret,
        "deployment_name": "planted",
        "function_id": function,
        "function_call_id": call,
        "task_id": task,
    }
    asked = [
        "AppDeploymentHistory", "AppFetchLogs", "AppGetByDeploymentName", "AppGetInfo", "AppGetLayout",
        "AppGetLifecycle", "AppGetObjects", "AppGetTags", "AppList", "AppLookup", "FunctionCallFromId",
        "FunctionCallGetInfo", "FunctionCallList", "FunctionGet", "FunctionGetById", "FunctionGetCallGraph",
        "FunctionGetCurrentStats", "FunctionGetSerialized", "SecretGetInfo", "SecretGetOrCreate", "SecretList",
        "TaskGetInfo", "TaskList", "TokenInfoGet",
    ]  # fmt: skip

    answers = {}
    for name in asked:
        fields = {field.name for field in RPCS[name].request.DESCRIPTOR.fields} & set(ids)
        answers[name] = wire.call(name, **{field: ids[field] for field in fields}).SerializeToString()
    planted.let_go()
    planted.result(call)

    assert b"NAMED" in answers["SecretGetInfo"]  # the keys are told
    assert {name for name, answer in answers.items() if canaries(answer)} == set()


def test_no_copy_of_them_lies_on_disk_once_a_container_runs(planted):
    call = planted.hold()
    files = [path for path in planted.engine.run_folder.rglob("*") if path.is_file()]
    holding = [path for path in files if canaries(path.read_bytes())]
    planted.let_go()
    planted.result(call)

    assert any(path.name == "arguments" for path in files)  # the container's folder was among them
    assert holding == []


def test_the_database_keeps_them_in_one_column_that_only_the_user_reads(start_engine, connect):
    engine = start_engine(umask=0)
    wire = connect(engine.environment["MODAL_SERVER_URL"], engine.token())
    fields = {"deployment_name": "planted", "object_creation_type": CREATE, "env_dict": {"NAMED": NAMED}}
    for _ in range(2):
        made = wire.call("SecretGetOrCreate", idempotency="once", **fields)
    wire.call(
        "SecretUpdate",
        idempotency="twice",
        secret_id=made.secret_id,
        updates=[api_pb2.SecretUpdateRequest.Update(key="INLINE", value=INLINE)],
    )
    assert engine.stop() == 0

    holding = [path for path in engine.home.rglob("*") if path.is_file() and canaries(path.read_bytes())]
    assert {path.name for path in holding} <= {"engine.sqlite3", "engine.sqlite3-wal"}
    assert {path.stat().st_mode & 0o777 for path in [*holding, engine.home]} == {0o600, 0o700}

    database = sqlite3.connect(engine.home / "engine.sqlite3")
    places = set()
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        for row in database.execute(f"SELECT * FROM {table}"):
            for name, value in zip(names, row, strict=True):
                raw = value if isinstance(value, bytes) else str(value).encode()
                places |= {(table, name)} if canaries(raw) else set()
    database.close()
    assert places == {("objects", "body")}
