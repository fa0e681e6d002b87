"""A server's HTTP face on a port of this process, as a container serves it, and a raw socket to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gpuserve import Http, WarmModelServer
from gpuserve.builders.local import runtime_for
from gpuserve.specs.http import API_KEYS

KEY = "0123456789abcdef0123456789"
OTHER_KEY = "fedcba9876543210fedcba9876"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def error(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert set(found) == {"error"}, found
        assert set(found["error"]) == {"type", "code", "message", "param"}
        return found["error"]

    @property
    def fault(self) -> tuple[int, str]:
        return self.status, self.error["code"]


class Served:
    """A server that listens on loopback."""

    def __init__(self, port: int, thread: Any) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.thread = thread

    def stop(self) -> None:
        """Have it leave, as SIGTERM does to a container."""
        self.thread.stop()

    @contextlib.contextmanager
    def connection(self, timeout: float = 30) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            yield connection

    def raw(self, data: bytes, timeout: float = 30) -> Answer:
        """Send *data* as it is, and read one answer."""
        with self.connection(timeout) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            return read_answer(connection)

    def ask(self, path: str, body: bytes | None = None, *extra: str, method: str = "", key: str | None = KEY) -> Answer:
        """One well-formed request; *extra* are whole header lines."""
        lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1", *extra]
        if not any(line.lower().startswith("host:") for line in extra):
            lines.append("Host: here")
        if key is not None and not any(line.lower().startswith("authorization:") for line in extra):
            lines.append(f"Authorization: Bearer {key}")
        if body is not None:
            if not any(line.lower().startswith("content-type:") for line in extra):
                lines.append("Content-Type: application/json")
            lines.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))

    def predict(self, item: Any, *extra: str, key: str | None = KEY) -> Answer:
        return self.ask("/predict", json.dumps({"input": item}).encode(), *extra, key=key)


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer; then, whether the other side has closed."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError(f"closed within {head!r}")
        head += byte
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    wanted = int(headers.get("content-length", 0))
    while len(body) < wanted:
        part = connection.recv(wanted - len(body))
        if not part:
            raise ConnectionError("closed within the body")
        body += part
    patience = connection.gettimeout()
    connection.settimeout(0.5 if headers.get("connection") == "close" else 0.001)
    try:
        closed = connection.recv(1, socket.MSG_PEEK) == b""  # a byte of the next answer stays where it is
    except TimeoutError:
        closed = False
    except ConnectionResetError:
        closed = True
    connection.settimeout(patience)
    return Answer(int(first.split()[1]), headers, body, closed)


@contextlib.contextmanager
def serving(cls: type[WarmModelServer], http: Http, keys: str = f"ci:{KEY},ops:{OTHER_KEY}") -> Iterator[Served]:
    """Serve *cls* with uvicorn on a thread of its own, exactly as a container with ``transport="server"`` does."""
    from gpuserve.runtime.http.serve import HttpThread

    server = cls()
    runtime = runtime_for(server)
    server._gpuserve_runtime = runtime
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        patch.setenv(API_KEYS, keys)
        asyncio.run(runtime.load())
        asyncio.run(runtime.make_ready())
        thread = HttpThread(runtime, http.model_copy(update={"transport": "server", "port": port}), server.routes)
        thread.start()
        try:
            yield Served(port, thread)
        finally:
            thread.stop()
