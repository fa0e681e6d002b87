"""What is not HTTP is answered once and closed; what comes too slowly is cut off; who leaves is let go."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time

import psutil
import pytest

from gpuserve import Http

from .conftest import read_answer, serving
from .framed import BODY, CHUNKED, LENGTH, SECOND, post
from .served import Echo, Held

pytestmark = pytest.mark.wide

protocol = pytest.importorskip("gpuserve.runtime.http.protocol")


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "_HEAD_S", 0.3)
        with serving(Held, Http(body_timeout_s=0.3)) as running:
            yield running


MALFORMED = {
    "both lengths": post(LENGTH, CHUNKED, body=b"0\r\n\r\n" + SECOND),
    "both lengths, the other way round": post(CHUNKED, LENGTH, body=b"0\r\n\r\n" + SECOND),
    "two lengths": post(LENGTH, b"Content-Length: 5\r\n", body=BODY + SECOND),
    "two lengths in one": post(b"Content-Length: 26, 26\r\n", body=BODY + SECOND),
    "a negative length": post(b"Content-Length: -1\r\n", body=BODY),
    "a signed length": post(b"Content-Length: +26\r\n", body=BODY),
    "a hexadecimal length": post(b"Content-Length: 0x1a\r\n", body=BODY),
    "an empty length": post(b"Content-Length: \r\n", body=BODY),
    "a length with a blank in it": post(b"Content-Length: 2 6\r\n", body=BODY),
    "a length of a thousand digits": post(b"Content-Length: " + b"9" * 1000 + b"\r\n", body=BODY),
    "a blank before the colon": post(b"Content-Length : 26\r\n", body=BODY),
    "a blank before the colon of the encoding": post(b"Transfer-Encoding : chunked\r\n", body=b"0\r\n\r\n"),
    "chunked and then plain": post(b"Transfer-Encoding: chunked, identity\r\n", body=b"0\r\n\r\n"),
    "chunked in quotes": post(b'Transfer-Encoding: "chunked"\r\n', body=b"0\r\n\r\n"),
    "another encoding": post(b"Transfer-Encoding: xchunked\r\n", body=b"0\r\n\r\n"),
    "a chunk that does not end": post(CHUNKED, body=b"3\r\nabcX\r\n0\r\n\r\n"),
    "a chunk of no size": post(CHUNKED, body=b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk of a negative size": post(CHUNKED, body=b"-1\r\na\r\n0\r\n\r\n"),
    "a chunk of too large a size": post(CHUNKED, body=b"fffffffffffffffffff\r\na\r\n"),
    "a chunk whose size has a prefix": post(CHUNKED, body=b"0x3\r\nabc\r\n0\r\n\r\n"),
    "a chunk that ends with a line feed": post(CHUNKED, body=b"3\nabc\n0\n\n"),
    "a header without a name": post(b": a\r\n", body=BODY),
    "a header without a colon": post(b"Content-Length\r\n", body=BODY),
    "a header with a zero byte": post(b"X-A: a\x00b\r\n", body=BODY),
    "a header with a zero byte in its name": post(b"X\x00A: a\r\n", body=BODY),
    "a folded header": post(b"X-A: a\r\n b\r\n", body=BODY),
    "a bare carriage return": post(b"X-A: a\rX-B: b\r\n", body=BODY),
    "no version": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/9.9\r\nHost: here\r\n\r\n",
    "another protocol": b"GET /health ICE/1.0\r\nHost: here\r\n\r\n",
    "HTTP/2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method in small letters": b"get /health HTTP/1.1\r\nHost: here\r\n\r\n",
    "a method that is none": b"G<T /health HTTP/1.1\r\nHost: here\r\n\r\n",
    "a blank in the path": b"GET /he alth HTTP/1.1\r\nHost: here\r\n\r\n",
    "a zero byte in the path": b"GET /he\x00alth HTTP/1.1\r\nHost: here\r\n\r\n",
    "a leading blank": b" GET /health HTTP/1.1\r\nHost: here\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_http_is_answered_once_and_closed(served, name):
    with served.connection() as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(MALFORMED[name])
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part

    assert received.count(b"HTTP/1.1 ") == 1, "never two answers, and the connection is closed"
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'{"error": {"type": "invalid_request_error"' in received
    assert b"Traceback" not in received


def test_two_requests_in_one_piece_get_two_answers_in_their_order(served):
    with served.connection() as connection:
        connection.sendall(post(LENGTH, body=BODY) + SECOND)
        answers = [read_answer(connection), read_answer(connection)]

    assert [answer.status for answer in answers] == [200, 200]
    assert b'"text"' in answers[0].body
    assert answers[1].body == b'{"status":"ok"}'


def closed_within(sockets: list[socket.socket], seconds: float) -> int:
    """How many of them the other side closes in that time."""
    selector, left = selectors.DefaultSelector(), set(sockets)
    for one in sockets:
        one.setblocking(False)
        selector.register(one, selectors.EVENT_READ)
    until = time.monotonic() + seconds
    while left and time.monotonic() < until:
        for key, _ in selector.select(0.2):
            with contextlib.suppress(BlockingIOError):
                try:
                    gone = not key.fileobj.recv(65536)
                except ConnectionResetError:
                    gone = True
                if gone:
                    selector.unregister(key.fileobj)
                    left.discard(key.fileobj)
    selector.close()
    return len(sockets) - len(left)


BEGINNINGS = {
    "nothing": b"",
    "empty lines": b"\r\n\r\n",
    "a method": b"GE",
    "half a head": b"GET /health HTTP/1.1\r\nHost: here\r\nX-A: ",
    "an answered request and half of the next": SECOND + b"GET /hea",
    "half a body": post(b"Content-Length: 100\r\n", body=b"{"),
    "half a chunk": post(CHUNKED, body=b"5\r\nab"),
    "a refused request and half its body": b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\na",
}


def test_a_connection_that_is_silent_where_something_must_come_is_closed(served):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(served.connection()) for _ in BEGINNINGS]
        for connection, data in zip(silent, BEGINNINGS.values(), strict=True):
            connection.sendall(data)

        assert closed_within(silent, 10) == len(BEGINNINGS)


def test_an_empty_line_after_an_answer_does_not_hold_the_connection_for_ever(served):
    with served.connection() as connection:
        connection.sendall(SECOND)
        assert read_answer(connection).status == 200
        connection.settimeout(10)
        connection.sendall(b"\r\n")

        assert closed_within([connection], 10) == 1


def test_what_trickles_in_is_cut_off_as_if_it_were_silent(served):
    stop = threading.Event()
    begun = time.monotonic()
    with served.connection() as slow_head, served.connection() as slow_body:
        slow_head.sendall(b"GET /health HTTP/1.1\r\n")
        slow_body.sendall(post(b"Content-Length: 10000\r\n"))

        def trickle() -> None:
            while not stop.wait(0.1):
                for connection in (slow_head, slow_body):
                    with contextlib.suppress(OSError):
                        connection.send(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert closed_within([slow_head, slow_body], 10) == 2
        finally:
            stop.set()
            thread.join()
    assert time.monotonic() - begun < 5


def test_a_head_without_end_is_refused_while_it_comes(served):
    process = psutil.Process()
    before = process.memory_info().rss
    with served.connection() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\nX-A: ")
        received = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1024):
                connection.sendall(b"a" * 1024)
        with contextlib.suppress(ConnectionResetError):
            received = connection.recv(65536)

    assert received.startswith(b"HTTP/1.1 431 ") or received == b""
    assert process.memory_info().rss - before < 32 * 2**20


def test_a_head_that_comes_whole_and_too_large_is_answered_431(served):
    answer = served.ask("/predict", BODY, "X-A: " + "a" * 40_000)

    assert answer.status == 431
    assert answer.error["code"] in {"headers_too_large", "head_too_large"}


def test_who_hangs_up_gives_up_the_place_in_the_queue(served):
    server = Held.instance
    server.held.clear()
    with served.connection() as first:
        hold = b'{"input": {"prompt": "hold"}}'
        first.sendall(post(b"Content-Length: %d\r\n" % len(hold), body=hold))
        assert server.held.wait(10)
        gone = b'{"input": {"prompt": "gone"}}'
        before = queue_length(served)
        leaving = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
        for connection in leaving:
            connection.sendall(post(b"Content-Length: %d\r\n" % len(gone), body=gone))
        wait_until(lambda: queue_length(served) == before + 20)
        for connection in leaving:
            connection.close()
        wait_until(lambda: queue_length(served) == before, seconds=5)
        server.let_go.set()
        assert read_answer(first).status == 200
    server.let_go.clear()
    assert "gone" not in server.seen
    assert served.predict({"prompt": "next"}).status == 200


def queue_length(served) -> float:
    page = served.ask("/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("gpuserve_queue_length{"))


def wait_until(condition, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"


@pytest.mark.heavy
def test_hundreds_of_slow_connections_are_gone_within_15_s_and_nobody_else_waits(capfd):
    with serving(Echo, Http()) as served:
        process = psutil.Process()
        before = process.num_fds()
        with contextlib.ExitStack() as stack:
            slow = [stack.enter_context(served.connection()) for _ in range(700)]
            beginnings = list(BEGINNINGS.values())[1:]
            for number, connection in enumerate(slow[200:]):
                connection.sendall(beginnings[number % len(beginnings)])
            slowest, stop = [], threading.Event()

            def probe() -> None:
                while not stop.wait(0.1):
                    begun = time.monotonic()
                    assert served.ask("/health").status == 200
                    slowest.append(time.monotonic() - begun)

            thread = threading.Thread(target=probe)
            thread.start()
            closed = closed_within(slow, 15)
            stop.set()
            thread.join()
        assert closed == len(slow)
        assert sorted(slowest)[int(len(slowest) * 0.99)] < 0.05
        wait_until(lambda: process.num_fds() <= before + 2)
