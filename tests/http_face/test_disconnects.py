"""Clients that hang up at any moment: what was done for them ends, and nothing of it is left."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time

import pytest

from gpuserve import Batching, Http

from .conftest import KEY, serving
from .served import Echo
from .test_framing import post, queue_length, wait_until

pytestmark = pytest.mark.wide

pytest.importorskip("gpuserve.runtime.http.serve")

HEAD = f"Host: here\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n".encode()
SOON_S = 0.25


class Patient(Echo):
    """Does nothing quickly, and keeps what it was doing in sight."""

    batching = Batching(max_batch_size=4, max_queue=64)
    instance: Patient

    def load(self) -> None:
        super().load()
        type(self).instance = self
        self.running: dict[str, int] = {"route": 0, "stream": 0}

    def routes(self, router) -> None:
        @router.get("/wait")
        async def wait() -> dict:
            self.running["route"] += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.running["route"] -= 1
            return {}

        @router.get("/events")
        async def events():
            from fastapi.responses import StreamingResponse

            async def pieces():
                self.running["stream"] += 1
                try:
                    while True:
                        yield "data: 1\n\n"
                        await asyncio.sleep(0.005)
                finally:
                    self.running["stream"] -= 1

            return StreamingResponse(pieces(), media_type="text/event-stream")

        @router.get("/tasks")
        async def tasks() -> dict:
            return {"tasks": len(asyncio.all_tasks())}


def body(prompt: str) -> bytes:
    return b'{"input": {"prompt": "%s"}}' % prompt.encode()


def requests(dice: random.Random) -> bytes:
    prompt = body("a" * dice.randint(1, 5000))
    length = b"Content-Length: %d\r\n" % len(prompt)
    whole = dice.choice(
        (
            b"GET /wait HTTP/1.1\r\n" + HEAD + b"\r\n",
            b"GET /events HTTP/1.1\r\n" + HEAD + b"\r\n",
            post(length, body=prompt),
            post(length, body=prompt, first=b"POST /letters HTTP/1.1"),
        )
    )
    return whole[: dice.randint(0, len(whole))] if dice.random() < 0.3 else whole


def hang_up(port: int, dice: random.Random) -> None:
    """Ask, and close or reset the connection at some moment of it."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(requests(dice))
        if dice.random() < 0.8:
            connection.settimeout(dice.uniform(0.0005, 0.02))
            with contextlib.suppress(OSError):
                connection.recv(dice.choice((1, 65536)))
        if dice.random() < 0.5:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("times", [20, pytest.param(2000, marks=[pytest.mark.heavy, pytest.mark.timeout(900)])])
def test_who_hangs_up_at_any_moment_leaves_neither_work_nor_tasks_nor_a_place_behind(times, capfd):
    dice = random.Random(times)
    with serving(Patient, Http()) as served:
        server = Patient.instance
        assert served.predict({"prompt": "before"}).status == 200  # the queue has its worker from here on
        before = served.ask("/tasks").body
        slowest = 0.0
        for _ in range(times):
            hang_up(served.port, dice)
            begun = time.monotonic()
            wait_until(lambda: not any(server.running.values()) and not served.thread.connections, 10)
            slowest = max(slowest, time.monotonic() - begun)
        crowd = [threading.Thread(target=hang_up, args=(served.port, random.Random(n))) for n in range(20)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
        wait_until(lambda: not any(server.running.values()) and not served.thread.connections, 10)
        assert queue_length(served) == 0
        wait_until(lambda: served.ask("/tasks").body == before, 5)
        assert served.predict({"prompt": "after"}).status == 200
    print(f"{times} disconnects, all ended within {1000 * slowest:.0f} ms")
    if times > 20:  # what takes how long is for a machine that does nothing else
        assert slowest < SOON_S
    assert "Traceback" not in "".join(capfd.readouterr().err)
