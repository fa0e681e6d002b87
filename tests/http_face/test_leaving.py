"""A server that leaves: every request is answered once, a stream ends as it says, and the next one takes over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time

import pytest

from gpuserve import Http

from .conftest import KEY, read_answer, serving
from .generations import generations
from .served import Echo
from .test_framing import post

pytestmark = pytest.mark.wide

serve = pytest.importorskip("gpuserve.runtime.http.serve")

GRACE_S = 25.0
HEAD = f"Host: here\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n".encode()


class OpenLoop:
    """A client that asks 100 times a second, whatever becomes of its requests; half of them on kept connections."""

    def __init__(self, port: int, per_s: float = 100.0) -> None:
        self.port, self.per_s = port, per_s
        self.asked: set[int] = set()
        self.answers: dict[int, list[str]] = {}
        self.faults: list[str] = []
        self._kept: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, stop: threading.Event) -> None:
        loop = asyncio.get_running_loop()
        number, begun = 0, loop.time()
        while not stop.is_set():
            self.asked.add(number)
            task = asyncio.ensure_future(self._ask(number, keep=number % 2 == 0))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
            await asyncio.sleep(max(0.0, begun + number / self.per_s - loop.time()))
        await asyncio.gather(*self._tasks)
        while not self._kept.empty():
            self._kept.get_nowait()[1].close()

    async def _ask(self, number: int, *, keep: bool) -> None:
        try:
            async with asyncio.timeout(60):
                reader, writer = await self._connection(keep=keep)
                body = json.dumps({"input": f"id {number}"}).encode()
                lines = b"POST /predict HTTP/1.1\r\n" + HEAD + (b"" if keep else b"Connection: close\r\n")
                writer.write(lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length: ")[2].split("\r\n")[0])
                text = (await reader.readexactly(length)).decode()
                self.answers.setdefault(number, []).append(f"{head.split()[1]} {text}")
                if keep and "connection: close" not in head:
                    self._kept.put_nowait((reader, writer))
                else:
                    assert await reader.read() == b""
                    writer.close()
        except Exception as error:
            self.faults.append(f"{number}: {error!r}")

    async def _connection(self, *, keep: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while keep and not self._kept.empty():
            reader, writer = self._kept.get_nowait()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)


def not_ready_after(connection, begun: float) -> float:
    """Ask /ready on a connection that is open until the answer is 503; how long that took."""
    while True:
        connection.sendall(b"GET /ready HTTP/1.1\r\nHost: here\r\n\r\n")
        if read_answer(connection).status == 503:
            return time.monotonic() - begun


@pytest.mark.parametrize("times", [2, pytest.param(200, marks=[pytest.mark.heavy, pytest.mark.timeout(1800)])])
def test_servers_that_follow_each_other_answer_every_request_exactly_once(times):
    import socket

    stop = threading.Event()
    with generations(f"ci:{KEY}") as servers:
        servers.begin()
        pid = servers.hear(ready=None)["ready"]
        client = OpenLoop(servers.port)
        thread = threading.Thread(target=lambda: asyncio.run(client.run(stop)), daemon=True)
        thread.start()
        unready, left = [], []
        for _ in range(times):
            answered = len(client.answers)
            with socket.create_connection(("127.0.0.1", servers.port), timeout=30) as asking:
                asking.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
                assert read_answer(asking).status == 200
                begun = time.monotonic()
                os.kill(pid, signal.SIGTERM)
                servers.begin()
                unready.append(not_ready_after(asking, begun))
            ended = servers.hear(ended=pid)
            assert ended["code"] == 0
            left.append(ended["at"] - begun)
            pid = servers.hear(ready=None)["ready"]
            while len(client.answers) < answered + 20 and not client.faults:
                time.sleep(0.01)
        stop.set()
        thread.join(90)
        os.kill(pid, signal.SIGTERM)
        assert servers.hear(ended=pid)["code"] == 0

    print(f"{len(client.asked)} requests, {times} drains")
    print(f"/ready 503 after {1000 * max(unready):.1f} ms at most, gone after {max(left):.2f} s at most")
    assert client.faults == []
    assert client.answers == {number: [f'200 {{"output":"id {number}"}}'] for number in client.asked}
    assert max(left) < GRACE_S - 1
    if times > 2:  # what takes how long is for a machine that does nothing else
        assert sorted(unready)[int(len(unready) * 0.99)] < 0.1


def event_stream(connection) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


@pytest.mark.parametrize("tenths", [5, pytest.param(30, marks=pytest.mark.heavy)])
def test_a_stream_that_was_begun_is_told_to_its_end(tenths):
    import socket

    with generations(f"ci:{KEY}") as servers:
        servers.begin()
        pid = servers.hear(ready=None)["ready"]
        with socket.create_connection(("127.0.0.1", servers.port), timeout=30) as connection:
            connection.sendall(b"GET /count/%d HTTP/1.1\r\n" % tenths + HEAD + b"\r\n")
            received = connection.recv(65536)
            os.kill(pid, signal.SIGTERM)
            received += event_stream(connection)
        assert servers.hear(ended=pid)["code"] == 0
    assert [f"data: {number}\n\n".encode() in received for number in range(tenths)] == [True] * tenths
    assert received.endswith(b"event: done\ndata: {}\n\n\r\n0\r\n\r\n")


class Slow(Echo):
    instance: Slow

    def load(self) -> None:
        super().load()
        type(self).instance = self
        self.closed = threading.Event()

    def routes(self, router) -> None:
        from fastapi.responses import StreamingResponse

        async def halves(first: str):
            yield first
            await asyncio.Event().wait()

        @router.get("/events")
        async def events() -> StreamingResponse:
            return StreamingResponse(halves("data: 1\n\n"), media_type="text/event-stream")

        @router.get("/half-an-event")
        async def half() -> StreamingResponse:
            return StreamingResponse(halves("data: 1\n"), media_type="text/event-stream")

        @router.get("/lines")
        async def lines() -> StreamingResponse:
            return StreamingResponse(halves("{}\n"), media_type="application/jsonl")


ASKED = (b"/events", b"/half-an-event", b"/lines")


def test_what_is_not_answered_when_the_grace_is_over_is_told_so_and_no_half_looks_whole(monkeypatch):
    monkeypatch.setattr(serve, "_DRAIN_S", 0.5)
    with serving(Slow, Http()) as served:
        connections = [served.connection() for _ in range(4)]
        held, *streams = [one.__enter__() for one in connections]
        for path, connection in zip(ASKED, streams, strict=True):
            connection.sendall(b"GET " + path + b" HTTP/1.1\r\n" + HEAD + b"\r\n")
        firsts = [connection.recv(65536) for connection in streams]
        body = b'{"input": {"prompt": "hold"}}'
        held.sendall(post(b"Content-Length: %d\r\n" % len(body), body=body))
        assert Slow.instance.held.wait(10)
        stopping = threading.Thread(target=served.stop)
        stopping.start()
        events, half, lines = (first + event_stream(one) for first, one in zip(firsts, streams, strict=True))
        refused = event_stream(held)
        Slow.instance.let_go.set()
        stopping.join(10)
        for one in connections:
            one.__exit__(None, None, None)

    assert b"data: 1\n\n" in events
    assert b'event: error\ndata: {"error": {"type": "server_error", "code": "shutting_down"' in events
    assert events.endswith(b"0\r\n\r\n")
    for cut in (half, lines):
        assert cut.startswith(b"HTTP/1.1 200")
        assert b"error" not in cut
        assert not cut.endswith(b"0\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1\r\n" in refused
    assert b'"code": "shutting_down"' in refused


def test_a_stream_that_takes_too_long_ends_with_an_event_that_says_so():
    with serving(Slow, Http(timeout_s=0.3)) as served, served.connection() as connection:
        connection.sendall(b"GET /events HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n")
        received = event_stream(connection)
    assert b'event: error\ndata: {"error": {"type": "server_error", "code": "timeout"' in received
    assert received.endswith(b"0\r\n\r\n")
