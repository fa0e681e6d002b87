"""Whatever the engine listens on is this machine's own, and what it writes is its user's own."""

import functools
import ipaddress
import json
import pickle
import socket
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gpuserve.engine.protocol import api_pb2

APP = """
import modal
app = modal.App("listening")
ready = modal.Queue.from_name("ready", create_if_missing=True)
gate = modal.Queue.from_name("gate", create_if_missing=True)
secret = modal.Secret.from_dict({"TOKEN": "-".join(["canary", "of", "the", "modes"])})
volume = modal.Volume.from_name("kept", create_if_missing=True)

@app.function(secrets=[secret], volumes={"/kept": volume})
def held():
    ready.put(1)
    return gate.get()

@app.function()
@modal.asgi_app()
def hello():
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"hello": "you"}'})
    return answer
"""
_ACCEPTS, _LISTENS = 0x10000, "0A"


def family_of(pid):
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while fresh := {child for child, parent in parents.items() if parent in found and child not in found}:
        found |= fresh
    return found


def inodes_of(pid):
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def address_of(text):
    """The address of a line of /proc/net/tcp: words of four bytes in the machine's own order."""
    raw = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return ipaddress.ip_address(raw)


def listeners(pids):
    """The internet addresses with ports, and the unix socket paths, that these processes listen on."""
    internet, local = set(), set()
    for pid in pids:
        try:
            mine = inodes_of(pid)
        except OSError:  # it has just ended
            continue
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[9] in mine and (not table.startswith("tcp") or fields[3] == _LISTENS):
                    address, _, port = fields[1].partition(":")
                    internet.add((address_of(address), int(port, 16)))
        for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[6] in mine and int(fields[3], 16) & _ACCEPTS:
                local.add(fields[7] if len(fields) > 7 else "")
    return internet, local


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def endpoint(wire):
    reply = wire.call("FunctionGet", app_name="listening", object_tag="hello")
    return reply.handle_metadata.web_url


@pytest.fixture(scope="module")
def busy(start_engine, modal_cli, dial):
    """Engines under umask 000 whose deployed app has a web endpoint and a container that runs."""

    @functools.cache
    def start(*options):
        engine = start_engine(*options, umask=0)
        modal_cli(engine.environment, "deploy", APP)
        wire = dial(engine.environment["MODAL_SERVER_URL"], engine.token())
        function = wire.call("FunctionGet", app_name="listening", object_tag="held").function_id
        arguments = api_pb2.FunctionInput(args=pickle.dumps(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE)
        wire.call(
            "FunctionMap",
            function_id=function,
            function_call_type=api_pb2.FUNCTION_CALL_TYPE_UNARY,
            pipelined_inputs=[api_pb2.FunctionPutInputsItem(idx=0, input=arguments)],
        )
        ready = wire.call("QueueGetOrCreate", deployment_name="ready", object_creation_type=1).queue_id
        assert wire.call("QueueGet", queue_id=ready, timeout=30).values
        with urllib.request.urlopen(endpoint(wire), timeout=30) as answer:
            assert json.load(answer) == {"hello": "you"}
        return engine, wire

    return start


@pytest.mark.parametrize("options", [(), ("--port=0",)], ids=["unix socket", "tcp"])
def test_every_listener_is_on_loopback_or_a_unix_socket(options, busy):
    engine, wire = busy(*options)

    internet, local = listeners(family_of(engine.pid))

    assert len(family_of(engine.pid)) >= 4  # the engine, the pre-forked process, two containers
    web_port = int(endpoint(wire).rpartition(":")[2])
    server_port = int(engine.environment["MODAL_SERVER_URL"].rpartition(":")[2]) if options else web_port
    assert {web_port, server_port} <= {port for _address, port in internet}
    assert {address for address, _port in internet} == {ipaddress.ip_address("127.0.0.1")}
    assert len(internet) == len({web_port, server_port}) + 1  # and the side door for large bodies
    doors = [path for path in local if path.endswith(".sock")]
    assert len(doors) >= 2
    assert set(doors) == local  # each has a path: the abstract namespace knows no modes


def test_the_listeners_of_an_engine_do_not_answer_on_other_addresses(busy):
    _engine, wire = busy("--port=0")
    port = int(endpoint(wire).rpartition(":")[2])

    # all of 127.0.0.0/8 reaches this machine: a listener on the wildcard address would take this
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_under_umask_000_only_the_user_reaches_state_and_sockets(busy):
    engine, _wire = busy()
    run = engine.run_folder

    assert mode(engine.home) == mode(run) == 0o700
    assert mode(engine.home / "engine.json") == 0o600
    sockets = [path for path in run.rglob("*") if path.is_socket()]
    assert len(sockets) >= 3  # the engine's, and one for each container
    assert {mode(path) for path in sockets} == {0o600}
    assert mode(run / "containers") == 0o700
    assert {mode(path) for path in (run / "containers").iterdir()} == {0o700}
    state = [path for path in engine.home.iterdir() if path.is_file()]
    assert {path.name for path in state} >= {"engine.sqlite3", "engine.sqlite3-wal", "engine.json", "engine.lock"}
    assert {path.name: oct(mode(path)) for path in state if mode(path) != 0o600} == {}
    folders = [path for path in engine.home.iterdir() if path.is_dir()]
    assert {path.name for path in folders} >= {"blobs", "mounts", "volumes"}
    assert {path.name: oct(mode(path)) for path in folders if mode(path) != 0o700} == {}


def test_what_holds_a_secret_is_readable_by_the_user_alone(busy):
    engine, _wire = busy()

    holding = [
        path
        for folder in (engine.home, engine.run_folder)
        for path in folder.rglob("*")
        if path.is_file() and b"canary-of-the-modes" in path.read_bytes()
    ]

    assert holding
    assert {str(path): oct(mode(path)) for path in holding if mode(path) != 0o600} == {}


def test_a_state_folder_that_others_may_list_shows_them_no_content(start_engine, connect, tmp_path):
    home = tmp_path / "shared"
    home.mkdir()
    home.chmod(0o755)
    engine = start_engine(home=home, umask=0)
    wire = connect(engine.environment["MODAL_SERVER_URL"], engine.token())
    wire.call("SecretGetOrCreate", deployment_name="one", object_creation_type=1, env_dict={"A": "canary-of-the-list"})

    open_to_others = [path for path in home.iterdir() if mode(path) & 0o077]

    assert (home / "engine.json").exists()
    assert open_to_others == []


def test_a_leftover_note_with_loose_modes_is_tightened_before_the_token_is_in_it(start_engine, tmp_path):
    home = tmp_path / "again"
    home.mkdir(mode=0o700)
    note = home / "engine.json"
    note.write_text("{}")
    note.chmod(0o644)

    engine = start_engine(home=home)

    assert json.loads(note.read_text())["MODAL_TOKEN_SECRET"] == engine.environment["MODAL_TOKEN_SECRET"]
    assert mode(note) == 0o600


def test_a_stopped_engine_leaves_no_socket_and_no_token(start_engine):
    engine = start_engine()
    run, secret = engine.run_folder, engine.environment["MODAL_TOKEN_SECRET"].encode()

    assert engine.stop() == 0

    assert not run.exists()
    assert not (engine.home / "engine.json").exists()
    assert [path for path in engine.home.rglob("*") if path.is_file() and secret in path.read_bytes()] == []


def test_a_page_elsewhere_cannot_reach_an_endpoint_by_rebinding_its_name(busy):
    _engine, wire = busy()

    rebound = urllib.request.Request(endpoint(wire), headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(rebound, timeout=10)
    with refused.value as answer:
        assert answer.code == 421


def test_the_side_door_for_large_bodies_opens_to_signed_urls_only(engine, client):
    def answer(url, method="GET", data=None):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method, data=data), timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    made = client.call("BlobCreate", content_length=3)
    put = made.upload_urls.items[0]
    base, signature = put.rpartition("/")[::2]
    assert answer(f"{base}/{'0' * len(signature)}", "PUT", b"abc") == 403
    assert answer(put) == 403  # signed for sending, not for fetching
    assert answer(put, "PUT", b"abc") == 200

    got = client.call("BlobGet", blob_id=made.blob_id).download_url
    assert answer(got) == 200
    assert answer(got, "PUT", b"abd") == 403
    root = base.removesuffix(f"/o/{made.blob_id}")
    other = client.call("BlobCreate", content_length=3).blob_id
    assert answer(f"{root}/o/{other}/{got.rpartition('/')[2]}") == 403  # another name, the first one's signature
    assert answer(f"{root}/o/..%2Fengine.sqlite3/{got.rpartition('/')[2]}") == 403
    assert answer(f"{root}/r/{'0' * 64}") == 403
    assert answer(f"{root}/r/..%2F..%2Fengine.sqlite3") == 403
