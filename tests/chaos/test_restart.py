"""A killed engine's successor is found under the same address; a stopped one has none."""

import json
import socket
import stat
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from grpclib import GRPCError, Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.session import Session

CREATE = 1


@pytest.fixture
def engine(tmp_path_factory, chaos):
    made = chaos.Engine(tmp_path_factory.mktemp("e"))
    yield made
    made.stop()


def test_a_client_finds_what_it_stored_under_the_address_it_knew_before_the_kill(engine):
    engine.start()
    known = engine.environment
    ident = engine.rpc("DictGetOrCreate", deployment_name="kept", object_creation_type=CREATE).dict_id

    engine.kill()
    engine.start()

    assert engine.environment == known
    assert engine.rpc("DictGetOrCreate", deployment_name="kept").dict_id == ident
    left = engine.home / "session.json"
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    assert stat.S_IMODE((engine.home / "run").stat().st_mode) == 0o700


def test_a_deployment_that_a_kill_cuts_in_two_is_whole_and_none_is_made_of_anothers_definitions(engine):
    engine.start()
    app = engine.rpc("AppGetOrCreate", app_name="shelf", object_creation_type=CREATE).app_id

    def send(name, code):
        definition = api_pb2.Function(function_name=name, module_name="m", function_serialized=code)
        return engine.rpc("FunctionCreate", app_id=app, function=definition).function_id

    def publish(tag, **ids):
        named = {"app_id": app, "name": "shelf", "deployment_tag": tag, "app_state": api_pb2.APP_STATE_DEPLOYED}
        engine.rpc("AppPublish", **named, **ids)

    def in_force():
        history = engine.rpc("AppDeploymentHistory", app_id=app).app_deployment_histories
        found = engine.rpc("AppGetLayout", app_id=app).app_layout.function_ids
        codes = {name: engine.rpc("FunctionGetSerialized", function_id=one) for name, one in found.items()}
        return {name: one.function_serialized for name, one in codes.items()}, history[0].tag

    ids = {"f": send("f", b"one")}
    publish("v1", function_ids=ids)
    send("f", b"two")
    ids |= {"g": send("g", b"new"), "C.*": send("C.*", b"class")}
    classes = {"C": engine.rpc("ClassCreate", app_id=app).class_id}
    engine.kill()
    engine.start()
    assert in_force() == ({"f": b"one"}, "v1")
    publish("v2", function_ids=ids, class_ids=classes)
    assert in_force() == ({"f": b"two", "g": b"new", "C.*": b"class"}, "v2")

    with pytest.raises(GRPCError, match=r"'shelf' says of C\.\*, f, g is not here any more: .* \(version 2\)"):
        publish("another", function_ids=ids, class_ids=classes)
    with pytest.raises(GRPCError, match="cs-unknown were not created"):
        publish("another", function_ids=ids, class_ids={"C": "cs-unknown"})
    assert in_force()[1] == "v2"


def test_a_stop_ends_what_a_kill_hands_on(engine):
    engine.start()
    engine.kill()
    engine.start()
    known = engine.environment

    assert engine.stop() == 0
    assert {path.name for path in engine.home.iterdir()} & {"session.json", "run", "engine.json"} == set()
    engine.start()

    assert engine.environment["MODAL_TOKEN_SECRET"] != known["MODAL_TOKEN_SECRET"]
    engine.environment = known
    with pytest.raises(GRPCError) as refused:
        engine.rpc("ClientHello")
    assert refused.value.status is Status.UNAUTHENTICATED


def test_over_tcp_no_token_is_handed_on(engine):
    engine.start("--port", "0")
    known = engine.environment
    engine.kill()
    kept = (engine.home / "session.json").read_text()
    engine.start("--port", "0")

    assert known["MODAL_TOKEN_SECRET"] not in kept
    assert engine.environment["MODAL_TOKEN_SECRET"] != known["MODAL_TOKEN_SECRET"]


def changed(note, **fields):
    note.write_text(json.dumps({**json.loads(note.read_text()), **fields}))


SPOILERS = {
    "another user may have read it": lambda note: note.chmod(0o644),
    "it is cut short": lambda note: note.write_text(note.read_text()[:-2]),
    "it is no object": lambda note: note.write_text("[]"),
    "another release wrote it": lambda note: changed(note, object_key=7),
    "it is a copy of another folder's": lambda note: changed(note, home=[str(note.parent), 1]),
    "it is a link": lambda note: note.rename(note.with_name("away")) and note.symlink_to("away"),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_what_was_left_is_not_taken_over_where(spoil, tmp_path):
    left = Session.begin(tmp_path, kept=True)
    assert Session.begin(tmp_path, kept=True).token_secret == left.token_secret
    note = tmp_path / "session.json"
    spoil(note)

    session = Session.begin(tmp_path, kept=True)

    assert len(session.token_secret) > 40
    assert session.token_secret != left.token_secret
    assert stat.S_IMODE(note.lstat().st_mode) == 0o600


def test_where_the_state_folders_path_is_too_long_the_sockets_lie_in_a_temporary_folder(tmp_path_factory, chaos):
    engine = chaos.Engine(tmp_path_factory.mktemp("e"))
    engine.home = engine.home / ("long" * 20)
    engine.start()
    known = engine.environment
    (folder,) = engine.temporary.iterdir()
    assert known["MODAL_SERVER_URL"] == f"unix://{folder}/engine.sock"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    engine.kill()
    engine.start()
    assert engine.environment == known
    assert engine.stop() == 0
    assert list(engine.temporary.iterdir()) == []


def test_the_side_doors_urls_hold_after_a_kill(engine):
    engine.start()
    url = engine.rpc("BlobCreate", content_length=3).upload_urls.items[0]

    engine.kill()
    engine.start()

    assert put(url, b"abc") == 200


def test_a_side_door_whose_port_was_taken_meanwhile_takes_none_of_its_old_urls(engine):
    engine.start()
    made = engine.rpc("BlobCreate", content_length=3)
    url = urlsplit(made.upload_urls.items[0])
    engine.kill()

    with socket.create_server(("127.0.0.1", url.port)):
        engine.start()
        now = urlsplit(engine.rpc("BlobCreate", content_length=3).upload_urls.items[0])

    assert now.port != url.port
    assert put(url._replace(netloc=now.netloc).geturl(), b"abc") == 403


def put(url, data):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=data), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
