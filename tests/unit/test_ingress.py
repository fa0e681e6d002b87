"""The ingress before servers that listen themselves, and before ASGI apps, spoken to over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

import pytest

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.streams import Streams
from gpuserve.engine.workers.ingress import Ingress, Target
from gpuserve.engine.workers.server_proxy import Address

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

PIECE = api_pb2.Asgi.HttpResponseBody(body=b"a" * 65536, more_body=True)


class Upstream:
    """A server's container: counts its connections, and answers as it is told."""

    def __init__(self, answer: bytes = ANSWER) -> None:
        self.answer, self.accepted, self.requests, self.bodies = answer, 0, 0, b""
        self.endless = False
        self.left = asyncio.Event()
        self.names = 0

    async def start(self, port: int = 0) -> None:
        self.listening = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self.listening.sockets[0].getsockname()[1]

    async def _serve(self, reader, writer) -> None:
        self.accepted += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                self.bodies += await reader.readexactly(length)
                self.requests += 1
                writer.write(self.answer)
                while self.endless:
                    writer.write(b"a" * 65536)
                    await writer.drain()
                if b"connection: close" in self.answer.lower():
                    break
        self.left.set()
        writer.close()

    @contextlib.asynccontextmanager
    async def server(self, function_id):
        yield Address(f"ta-{self.names}", f"http://127.0.0.1:{self.port}", lambda: None)


class App:
    """An ASGI app's container: sends pieces until it is told that its client has gone."""

    def __init__(self, streams: Streams) -> None:
        self.streams, self.asked, self.by_itself = streams, asyncio.Event(), True
        self.left: asyncio.Future = asyncio.get_running_loop().create_future()

    async def start(self, function_id, method_name, args) -> str:
        self.jobs = [asyncio.ensure_future(self._listen())]
        if self.by_itself:
            self.jobs.append(asyncio.ensure_future(self._send()))
        self.asked.set()
        return "fc-1"

    async def _send(self) -> None:
        self.put(http_response_start=api_pb2.Asgi.HttpResponseStart(status=200))
        while not self.left.done():
            self.put(http_response_body=PIECE)
            await self.streams.data_out("fc-1").drained()
            await asyncio.sleep(0)

    def put(self, **message) -> None:
        data = api_pb2.Asgi(**message).SerializeToString()
        self.streams.data_out("fc-1").put(api_pb2.DataChunk(data_format=api_pb2.DATA_FORMAT_ASGI, data=data))

    async def _listen(self) -> None:
        async for chunk in self.streams.data_in("fc-1").read(0):
            if api_pb2.Asgi.FromString(chunk.data).HasField("http_disconnect"):
                self.left.set_result(None)
                return

    async def result(self, function_call_id) -> api_pb2.GenericResult:
        await self.left
        return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)

    def cancel(self, function_call_id) -> None:
        raise AssertionError("it ends by itself")


@contextlib.asynccontextmanager
async def ingress_to(kind: str, calls=None, servers=None, streams=None):
    ingress = Ingress(calls, servers, streams or Streams(), read_blob=lambda _: b"", proxy_tokens=lambda *_: True)
    url = ingress.publish("one", Target("fu-1", "", kind))
    try:
        yield int(url.rpartition(":")[2])
    finally:
        await ingress.close()


async def connect(port: int):
    while True:  # it is published before it listens
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0)


async def ask(reader, writer, port, body: bytes = b"") -> tuple[int, bytes]:
    lines = f"POST / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(lines.encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


def reset(writer) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("kind", ["server", "asgi"])
@pytest.mark.parametrize("leave", [reset, lambda writer: writer.close()], ids=["by a reset", "in order"])
def test_a_client_that_leaves_midway_leaves_no_traceback_in_the_log(kind, leave, caplog):
    caplog.set_level(logging.DEBUG)

    async def go() -> None:
        streams = Streams()
        app = App(streams)
        upstream = Upstream(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        upstream.endless = True
        await upstream.start()
        async with ingress_to(kind, app, upstream, streams) as port:
            for size in (1, 100_000, 10_000_000):
                reader, writer = await connect(port)
                writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                await reader.readexactly(size)
                leave(writer)
                if kind == "asgi":
                    async with asyncio.timeout(20):
                        await app.left
                    break
                async with asyncio.timeout(20):
                    await upstream.left.wait()
                upstream.left.clear()
        upstream.listening.close()

    asyncio.run(go(), debug=False)
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_piece_that_meets_a_client_who_has_just_left_leaves_no_traceback_either(caplog):
    async def go() -> None:
        streams = Streams()
        app = App(streams)
        app.by_itself = False
        ingress = Ingress(app, None, streams, read_blob=lambda _: b"", proxy_tokens=lambda *_: True)
        port = int(ingress.publish("one", Target("fu-1", "", "asgi")).rpartition(":")[2])
        reader, writer = await connect(port)
        writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        await app.asked.wait()
        app.put(http_response_start=api_pb2.Asgi.HttpResponseStart(status=200))
        app.put(http_response_body=PIECE)
        await reader.readexactly(60_000)
        app.put(http_response_body=PIECE)  # the handler has its turn before it hears that the connection is lost
        ingress._endpoints["one"].runner.server.connections[0].transport.abort()
        async with asyncio.timeout(20):
            await app.left
        await ingress.close()
        writer.close()

    asyncio.run(go())
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_connections_to_a_container_are_kept_and_those_that_end_are_replaced():
    async def go() -> None:
        upstream = Upstream()
        await upstream.start()
        async with ingress_to("server", None, upstream) as port:
            reader, writer = await connect(port)
            for number in range(20):
                assert await ask(reader, writer, port, b"%03d" % number) == (200, b"ok")
            assert (upstream.requests, upstream.accepted) == (20, 1)
            assert upstream.bodies == b"".join(b"%03d" % number for number in range(20))
            upstream.answer = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            assert [await ask(reader, writer, port, b"x") for _ in range(3)] == [(200, b"ok")] * 3
            assert upstream.accepted == 3  # the kept one said its last word, and two more
            writer.close()
        upstream.listening.close()

    asyncio.run(go())


def test_a_connection_of_one_container_is_never_used_for_the_next_one():
    async def go() -> None:
        upstream = Upstream()
        await upstream.start()
        async with ingress_to("server", None, upstream) as port:
            reader, writer = await connect(port)
            assert await ask(reader, writer, port) == (200, b"ok")
            upstream.names += 1
            assert await ask(reader, writer, port) == (200, b"ok")
            assert upstream.accepted == 2
            async with asyncio.timeout(20):
                await upstream.left.wait()  # the first one was let go
            writer.close()
        upstream.listening.close()

    asyncio.run(go())
