"""Nothing is answered to whoever lacks the engine's token: every RPC of the descriptor, on both kinds of socket."""

import socket

import pytest
from grpclib import GRPCError, Status
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded, StreamReset, TrailersReceived

from gpuserve.engine import LocalEngine
from gpuserve.engine.protocol import RPCS
from gpuserve.engine.rpc import Access

WRONG = {
    "no token at all": lambda _id, _secret: {},
    "an id without a secret": lambda token_id, _secret: {"x-modal-token-id": token_id},
    "a secret without an id": lambda _id, secret: {"x-modal-token-secret": secret},
    "a wrong secret": lambda token_id, _secret: {"x-modal-token-id": token_id, "x-modal-token-secret": "as-wrong"},
    "a secret cut short": lambda token_id, secret: {
        "x-modal-token-id": token_id,
        "x-modal-token-secret": secret[:-1],
    },
    "a wrong id": lambda _id, secret: {"x-modal-token-id": "ak-other", "x-modal-token-secret": secret},
    "id and secret exchanged": lambda token_id, secret: {
        "x-modal-token-id": secret,
        "x-modal-token-secret": token_id,
    },
    "a container's task id": lambda _id, _secret: {"x-modal-task-id": "ta-1", "x-modal-container": "ta-1"},
}


@pytest.fixture(scope="module", params=[None, 0], ids=["unix socket", "tcp"])
def listening(request):
    with LocalEngine(port=request.param) as running:
        assert running.environment["MODAL_SERVER_URL"].startswith(
            "unix:///" if request.param is None else "http://127.0.0.1:"
        )
        yield running


@pytest.mark.parametrize("credentials", WRONG.values(), ids=WRONG.keys())
def test_every_rpc_is_refused_to(credentials, listening, connect):
    environment = listening.environment
    sent = credentials(environment["MODAL_TOKEN_ID"], environment["MODAL_TOKEN_SECRET"])
    wire = connect(environment["MODAL_SERVER_URL"], sent)

    answers = wire.statuses(RPCS)

    assert len(answers) == len(RPCS) > 280
    assert {name: status for name, status in answers.items() if status is not Status.UNAUTHENTICATED} == {}


def grpc_statuses(url, names, headers):
    """The answers of plain HTTP/2 requests: gRPC clients send no empty metadata."""
    if url.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(url.removeprefix("unix://"))
    else:
        host, _, port = url.removeprefix("http://").rpartition(":")
        sock = socket.create_connection((host, int(port)))
    connection, found, asked = H2Connection(), {}, {}
    waiting = list(names)
    with sock:
        sock.settimeout(20)
        connection.initiate_connection()
        while waiting or asked:
            while waiting and len(asked) < 50:
                name, stream = waiting.pop(), connection.get_next_available_stream_id()
                asked[stream] = name
                start = [(":method", "POST"), (":scheme", "http"), (":path", RPCS[name].path), (":authority", "local")]
                kind = [("te", "trailers"), ("content-type", "application/grpc")]
                connection.send_headers(stream, [*start, *kind, *headers])
                connection.send_data(stream, b"\0\0\0\0\0", end_stream=True)
            sock.sendall(connection.data_to_send())
            for event in connection.receive_data(sock.recv(65536)):
                if isinstance(event, ResponseReceived | TrailersReceived):
                    fields = {key.decode(): value.decode() for key, value in event.headers}
                    if "grpc-status" in fields:
                        found[asked[event.stream_id]] = Status(int(fields["grpc-status"]))
                elif isinstance(event, StreamEnded | StreamReset):
                    asked.pop(event.stream_id, None)
    return found


@pytest.mark.parametrize("empty", ["x-modal-token-id", "x-modal-token-secret", "both"])
def test_every_rpc_is_refused_to_an_empty(empty, listening):
    environment = listening.environment
    right = {
        "x-modal-token-id": environment["MODAL_TOKEN_ID"],
        "x-modal-token-secret": environment["MODAL_TOKEN_SECRET"],
    }
    sent = [(name, "" if empty in {name, "both"} else value) for name, value in right.items()]

    answers = grpc_statuses(environment["MODAL_SERVER_URL"], RPCS, sent)

    assert grpc_statuses(environment["MODAL_SERVER_URL"], ["ClientHello"], right.items()) == {"ClientHello": Status.OK}
    assert answers == dict.fromkeys(RPCS, Status.UNAUTHENTICATED)


def test_the_token_opens_what_is_built_and_names_what_is_not(listening, connect):
    environment = listening.environment
    metadata = {
        "x-modal-token-id": environment["MODAL_TOKEN_ID"],
        "x-modal-token-secret": environment["MODAL_TOKEN_SECRET"],
    }
    wire = connect(environment["MODAL_SERVER_URL"], metadata)
    built = listening.core.servicer.implemented

    answers = wire.statuses(["ClientHello", "EnvironmentList", "WorkspaceNameLookup", *(set(RPCS) - built)])

    assert {name for name, status in answers.items() if status is Status.UNIMPLEMENTED} == set(RPCS) - built
    assert {name for name, status in answers.items() if status is Status.OK} == set(answers) & built


def test_each_rpc_that_is_not_built_is_named_with_what_works_instead(listening, connect, credentials):
    wire = connect(listening.environment["MODAL_SERVER_URL"], credentials(listening.environment))
    missing = set(RPCS) - listening.core.servicer.implemented
    assert len(missing) > 100

    said = wire.messages(missing)

    for name, message in said.items():
        subject, _, instead = message.partition("; what works instead: ")
        assert subject == f"gpuserve's local engine does not implement {name}"
        assert len(instead.split()) > 1 or instead == "modal.Volume", f"{name}: {instead!r}"
        assert instead != "nothing yet", name
    assert set(said) == missing


def test_a_refused_rpc_leaves_no_trace(listening, connect):
    stranger = connect(listening.environment["MODAL_SERVER_URL"])

    for name, fields in {
        "AppCreate": {"description": "intruder"},
        "EnvironmentCreate": {"name": "intruder"},
        "DictGetOrCreate": {"deployment_name": "intruder", "object_creation_type": 1},
    }.items():
        assert stranger.refusal(name, idempotency="intruder", **fields) is Status.UNAUTHENTICATED

    store = listening.core.store
    assert [app for app in listening.core.registry.apps.values() if app.description == "intruder"] == []
    assert store.query("SELECT name FROM environments WHERE name = 'intruder'") == []
    assert store.query("SELECT id FROM objects WHERE name = 'intruder'") == []
    assert store.query("SELECT key FROM replies WHERE key LIKE '%intruder%'") == []


def test_an_engine_without_a_secret_admits_nobody():
    door = Access(token_id="ak-local", token_secret="")

    with pytest.raises(GRPCError) as refused:
        door.caller("ClientHello", {"x-modal-token-id": "ak-local", "x-modal-token-secret": ""})

    assert refused.value.status is Status.UNAUTHENTICATED


def test_each_engine_has_a_secret_of_its_own(connect):
    with LocalEngine() as one, LocalEngine() as other:
        mixed = {
            "x-modal-token-id": other.environment["MODAL_TOKEN_ID"],
            "x-modal-token-secret": other.environment["MODAL_TOKEN_SECRET"],
        }
        answers = connect(one.environment["MODAL_SERVER_URL"], mixed).statuses(["ClientHello", "AppList"])

    assert set(answers.values()) == {Status.UNAUTHENTICATED}
