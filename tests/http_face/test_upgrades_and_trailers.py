"""A change of protocol that is not made here hides no request, and what follows a body is no header."""

from __future__ import annotations

import contextlib
import threading

import pytest

from gpuserve import Http

from .conftest import KEY, read_answer, serving
from .framed import BODY, CHUNKED, LENGTH, SECOND, post
from .served import Echo, Held

pytestmark = pytest.mark.wide

protocol = pytest.importorskip("gpuserve.runtime.http.protocol")

UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
HIDDEN = b"GET /ready HTTP/1.1\r\nHost: here\r\n\r\n"
HOLD = b'{"input": {"prompt": "hold"}}'


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "_HEAD_S", 0.3)
        with serving(Held, Http(body_timeout_s=0.5)) as running:
            yield running


@pytest.mark.parametrize(
    "asking",
    {
        "an upgrade": post(b"Content-Length: %d\r\n" % len(HIDDEN), UPGRADE),
        "an upgrade, in chunks": post(CHUNKED, UPGRADE) + b"%x\r\n" % len(HIDDEN),
        "a tunnel": post(b"Content-Length: %d\r\n" % len(HIDDEN), first=b"CONNECT /predict HTTP/1.1"),
    }.items(),
    ids=lambda one: one[0],
)
def test_a_body_behind_a_request_for_another_protocol_is_never_answered_as_a_request(served, asking):
    with served.connection() as connection:
        connection.sendall(asking[1])
        answer = read_answer(connection)
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")
        received = b""
        with contextlib.suppress(OSError):
            connection.sendall(HIDDEN)
            while part := connection.recv(65536):
                received += part
    assert received == b""


def test_a_body_in_the_same_piece_is_not_dropped_either(served):
    answer = served.raw(post(LENGTH, UPGRADE, body=BODY))
    assert answer.fault == (400, "invalid_http")
    assert answer.closed


def test_a_request_without_a_body_is_answered_as_if_it_had_not_asked_and_is_the_last(served):
    """As `curl --http2` asks: what comes behind it may be lost, so the connection says that it ends."""
    asking = SECOND[:-2] + UPGRADE + b"\r\n"
    answer = served.raw(asking + SECOND)
    assert (answer.status, answer.headers["connection"], answer.closed) == (200, "close", True)
    assert served.raw(SECOND[:-2] + b"Content-Length: 0\r\n" + UPGRADE + b"\r\n").status == 200


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_key_in_the_trailer_opens_nothing(served, pieces):
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\n" + CHUNKED + b"\r\n"
    body = b"1a\r\n" + BODY + b"\r\n0\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
    with served.connection() as connection:
        for piece in (head + body,) if pieces == 1 else (head, body):
            connection.sendall(piece)
        assert read_answer(connection).status == 401


def test_a_second_host_and_a_request_id_in_the_trailer_are_no_headers(served):
    trailer = b"Host: there\r\nX-Request-Id: mine\r\n\r\n"
    answer = served.raw(post(CHUNKED, body=b"1a\r\n" + BODY + b"\r\n0\r\n" + trailer))
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "mine"


def test_a_trailer_that_does_not_end_its_size_is_refused_as_a_head_is(served):
    trailer = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 1000) for number in range(70))
    answer = served.raw(post(CHUNKED, body=b"1a\r\n" + BODY + b"\r\n0\r\n" + trailer + b"\r\n"))
    assert (answer.status, answer.closed) == (431, True)


@pytest.mark.parametrize("trailer", [b"", b"X-A: a\r\n"], ids=["no trailer", "a trailer"])
def test_a_request_takes_longer_than_a_head_may_whether_it_has_a_trailer_or_not(served, trailer):
    server = Held.instance
    server.held.clear()
    server.let_go.clear()
    with served.connection() as connection:
        connection.sendall(post(CHUNKED, body=b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(HOLD), HOLD, trailer)))
        assert server.held.wait(10)
        threading.Timer(1, server.let_go.set).start()
        assert read_answer(connection).status == 200


def test_the_host_of_a_whole_address_is_the_host_that_counts():
    with serving(Echo, Http(hosts=("here",))) as served:
        assert served.raw(b"GET http://here/health HTTP/1.1\r\nHost: evil\r\n\r\n").status == 200
        assert served.raw(b"GET http://evil/health HTTP/1.1\r\nHost: here\r\n\r\n").status == 421
        assert served.raw(b"GET http://here:80/health HTTP/1.1\r\nHost: evil:80\r\n\r\n").status == 200
