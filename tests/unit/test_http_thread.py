"""The port of `Http(transport="server")`, spoken to byte by byte, in this process."""

import contextlib
import http.client
import itertools
import json
import socket
import threading

import pytest

import gpuserve
from gpuserve.builders.local import runtime_for
from gpuserve.exceptions import EngineError
from gpuserve.runtime.http import protocol
from gpuserve.runtime.http.encoding import encode
from gpuserve.runtime.http.keys import KeysError
from gpuserve.runtime.http.serve import HttpThread
from gpuserve.specs.http import API_KEYS

KEY = "0123456789abcdef0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


class Echo(gpuserve.WarmModelServer):
    batching = gpuserve.Batching(max_batch_size=4, max_queue=64)

    def load(self) -> None:
        self.events: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def unload(self) -> None:
        self.events.append("unload")

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        if "wait" in batch:
            self.begun.set()
            assert self.go_on.wait(30)
        self.events.extend(batch)
        return batch


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Running:
    """`Echo`, ready behind a port."""

    def __init__(self) -> None:
        self.model = Echo()
        runtime = runtime_for(self.model)
        self.model.load()
        runtime.ready = True
        self.port = free_port()
        http = gpuserve.Http(transport="server", port=self.port)
        self.thread = HttpThread(runtime, http, self.model.routes).start()
        self.connections: list[http.client.HTTPConnection] = []

    def connect(self) -> http.client.HTTPConnection:
        self.connections.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30))
        return self.connections[-1]

    def raw(self, text: bytes) -> bytes:
        """Send bytes as they are, and read until the server hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(text)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def running(monkeypatch):
    monkeypatch.setenv(API_KEYS, f"ci:{KEY}")
    one = Running()
    yield one
    one.model.go_on.set()
    one.thread.stop()
    for connection in one.connections:
        connection.close()


def body(text: str) -> bytes:
    return json.dumps({"input": text}).encode()


def test_a_drain_loses_no_request_of_clients_that_keep_their_connections(running):
    stopping, answered, numbers = threading.Event(), [], itertools.count()

    def client():
        connection = running.connect()
        while True:
            connection.request("POST", "/predict", body(f"r{next(numbers)}"), HEADERS)
            answer = connection.getresponse()
            answered.append((answer.status, answer.read()))
            if len(answered) > 200:
                stopping.set()
            if answer.getheader("connection") == "close":
                return

    failures = []

    def guarded():
        try:
            client()
        except Exception as error:
            failures.append(error)
            stopping.set()

    clients = [threading.Thread(target=guarded) for _ in range(8)]
    for one in clients:
        one.start()
    assert stopping.wait(30)
    running.thread.stop()
    for one in clients:
        one.join(30)
    assert not failures
    assert {status for status, _ in answered} == {200}
    assert len(answered) == next(numbers)
    assert running.model.events[-1] == "unload"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=30)


def test_a_request_in_the_model_is_answered_before_the_server_unloads(running):
    connection = running.connect()
    connection.request("POST", "/predict", body("wait"), HEADERS)
    assert running.model.begun.wait(30)
    stop = threading.Thread(target=running.thread.stop)
    stop.start()
    with contextlib.suppress(ConnectionError):
        while True:  # until it takes nobody new
            socket.create_connection(("127.0.0.1", running.port), timeout=30).close()
    assert running.model.events == []
    running.model.go_on.set()
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"output":"wait"}')
    stop.join(30)
    assert running.model.events == ["wait", "unload"]


def test_a_client_that_leaves_gives_up_its_place_in_the_queue(running):
    first = running.connect()
    first.request("POST", "/predict", body("wait"), HEADERS)
    assert running.model.begun.wait(30)
    left = running.connect()
    left.request("POST", "/predict", body("left"), HEADERS)
    metrics = running.connect()

    def waiting() -> bytes:
        metrics.request("GET", "/metrics", headers=HEADERS)
        text = metrics.getresponse().read()
        return next(line for line in text.splitlines() if line.startswith(b"gpuserve_queue_length"))

    while not waiting().endswith(b" 1.0"):
        continue
    left.close()
    while not waiting().endswith(b" 0.0"):
        continue
    running.model.go_on.set()
    assert first.getresponse().status == 200
    assert running.model.events == ["wait"]


def test_what_is_no_http_or_too_long_a_head_is_refused_in_the_shape_of_every_error(running):
    head = b"GET /health HTTP/1.1\r\nHost: a\r\n"
    for sent, status, code in (
        (b"nonsense\r\n\r\n", 400, "invalid_http"),
        (head + b"X-Long: " + b"a" * (70 << 10) + b"\r\n\r\n", 431, "head_too_large"),
        (head + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(200)) + b"\r\n", 431, "head_too_large"),
    ):
        first, _, rest = running.raw(sent).partition(b"\r\n")
        assert first.startswith(b"HTTP/1.1 %d" % status)
        assert json.loads(rest.partition(b"\r\n\r\n")[2])["error"]["code"] == code
    whole = running.raw(head + b"X-Long: " + b"a" * (30 << 10) + b"\r\nConnection: close\r\n\r\n")
    assert whole.startswith(b"HTTP/1.1 200")


def test_a_head_that_does_not_end_is_cut_off(running, monkeypatch):
    monkeypatch.setattr(protocol, "_HEAD_S", 0.05)
    assert running.raw(b"") == b""
    assert running.raw(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTT").count(b"HTTP/1.1 200") == 1


def test_a_port_that_is_taken_and_keys_that_are_missing_end_the_start(running, monkeypatch):
    taken = gpuserve.Http(transport="server", port=running.port)
    model = Echo()
    with pytest.raises(EngineError, match=rf"cannot listen on 127\.0\.0\.1:{running.port}"):
        HttpThread(runtime_for(model), taken, model.routes).start()
    monkeypatch.delenv(API_KEYS)
    with pytest.raises(KeysError):
        HttpThread(runtime_for(model), taken, model.routes).start()


def test_answers_are_json_that_every_reader_takes():
    numpy = pytest.importorskip("numpy")
    vector = numpy.array([0.1, 1e-7, 3], numpy.float32)
    assert numpy.array_equal(numpy.array(json.loads(encode(vector)), numpy.float32), vector)
    assert encode({"output": vector[::2]}) == b'{"output":[0.1,3.0]}' or json.loads(encode(vector[::2]))
    assert encode({"a": None, "b": "null", "c": 2**70, 3: "key"}) == (
        b'{"a":null,"b":"null","c":1180591620717411303424,"3":"key"}'
    )
    for bad in (float("nan"), [1.0, float("inf")], numpy.array([numpy.nan], numpy.float32)):
        with pytest.raises(ValueError, match="JSON compliant"):
            encode({"output": bad})
    with pytest.raises(TypeError):
        encode({"output": object()})
