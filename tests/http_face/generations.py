"""One server after another on one listening socket, each in a process of its own: what a rolling update is made of.

    python generations.py FD

Lines in: ``start`` forks the next server. Lines out: ``{"ready": PID}``, and ``{"ended": PID, "code": …, "at": …}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import gpuserve
from gpuserve.builders.local import runtime_for
from gpuserve.runtime.http.serve import HttpThread


class Echo(gpuserve.WarmModelServer):
    """Answers a text with itself, a little later; and one that counts slowly."""

    batching = gpuserve.Batching(max_batch_size=8, max_queue=1024)

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        time.sleep(0.002)
        return batch

    def routes(self, router: Any) -> None:
        from fastapi.responses import StreamingResponse

        @router.get("/count/{tenths}")
        async def count(tenths: int) -> StreamingResponse:
            async def events() -> Any:
                for number in range(tenths):
                    yield f"data: {number}\n\n"
                    await asyncio.sleep(0.1)
                yield "event: done\ndata: {}\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")


def serve(sock: socket.socket, say: Any) -> None:
    server = Echo()
    http = gpuserve.Http(transport="server", port=sock.getsockname()[1], timeout_s=20)
    runtime = runtime_for(server)
    server._gpuserve_runtime = runtime

    async def start() -> None:
        await runtime.load()
        await runtime.make_ready()

    asyncio.run(start())
    thread = HttpThread(runtime, http, server.routes, sock).start()
    say(ready=os.getpid())
    signal.sigwait({signal.SIGTERM})
    thread.stop()


def main(fd: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    lock = threading.Lock()
    told = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the servers' own log is not what the other side reads

    def say(**found: Any) -> None:
        with lock:
            os.write(told, (json.dumps(found) + "\n").encode())

    watchers: list[int] = []
    while True:
        readable, _, _ = select.select([0, *watchers], [], [])
        for one in readable:
            if one in watchers:
                watchers.remove(one)
                _, status = os.waitpid(pids.pop(one), 0)
                say(ended=last[one], code=os.waitstatus_to_exitcode(status), at=time.monotonic())
                os.close(one)
            elif not os.read(0, 65536):
                return
            else:
                pid = os.fork()
                if not pid:
                    code = 1
                    with contextlib.suppress(BaseException):
                        serve(socket.socket(fileno=os.dup(fd)), say)
                        code = 0
                    os._exit(code)
                watcher = os.pidfd_open(pid)
                pids[watcher] = last[watcher] = pid
                watchers.append(watcher)


pids: dict[int, int] = {}
last: dict[int, int] = {}


class Generations:
    """The test's side: starts servers, ends them, and hears of both."""

    def __init__(self, keys: str) -> None:
        import subprocess

        self.sock = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self.sock.getsockname()[1]
        self._heard: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.sock.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GPUSERVE_API_KEYS": keys},
            pass_fds=(self.sock.fileno(),),
            bufsize=0,
        )

    def begin(self) -> None:
        """Start one more server."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"start\n")

    def hear(self, **wanted: Any) -> dict[str, Any]:
        """Wait until the other side has said this, of a pid; or of any, for ``None``."""
        assert self._process.stdout is not None
        (name, pid) = next(iter(wanted.items()))
        while True:
            for said in self._heard:
                if name in said and pid in {None, said[name]}:
                    self._heard.remove(said)
                    return said
            line = self._process.stdout.readline()
            assert line, "the servers' parent has ended"
            self._heard.append(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self.sock.close()


@contextlib.contextmanager
def generations(keys: str) -> Iterator[Generations]:
    running = Generations(keys)
    try:
        yield running
    finally:
        running.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
