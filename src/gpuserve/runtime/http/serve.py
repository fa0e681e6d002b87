"""The server's own port, for ``Http(transport="server")``: uvicorn on a loop and a thread of its own.

It is open when `HttpThread.start` returns, and `HttpThread.stop` loses no request that came in before.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Self

import uvicorn
import uvloop
from fastapi import APIRouter
from typing_extensions import override

from gpuserve.exceptions import EngineError
from gpuserve.runtime.http.app import build_app
from gpuserve.runtime.http.protocol import Connections, HttpProtocol
from gpuserve.runtime.server import ServerRuntime
from gpuserve.specs.http import Http

__all__ = ["HttpThread", "address_to_listen_on"]

# Longer than the proxies in front keep an idle connection (60 s is what most take), or they would send a request
# into one that is being closed. Source: nginx's own default.
_KEEP_ALIVE_S = 75
# Connections that the kernel keeps while the loop is busy. Source: uvicorn's default; above what one container takes.
_BACKLOG = 2048
# Seconds of a drain: five less than a container is given to leave, for `unload`.
# Source: modal 1.6.4's container, "up to 30 seconds".
_DRAIN_S = 25.0
# What is left then is told so, and has this long to be sent. Source: our choice.
_FAREWELL_S = 1
# How long an idle connection may still bring a request that was on its way, which is answered with Connection: close.
_LINGER_S = 1.0


def address_to_listen_on(environment: Mapping[str, str] = os.environ) -> str:
    """Every address in a container of Modal's, where its proxy comes from outside; loopback anywhere else.

    Source:
        Modal's guide to its containers' environment: ``MODAL_CLOUD_PROVIDER`` is set in each; modal 1.6.4 itself
        relies on it. The local engine does not set it, and a declaration may not (see ``builders.transport``).

    Examples:
        >>> address_to_listen_on({}), address_to_listen_on({"MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS"})
        ('127.0.0.1', '0.0.0.0')
    """
    return "0.0.0.0" if environment.get("MODAL_CLOUD_PROVIDER") else "127.0.0.1"


class HttpThread:
    """Serves one server's HTTP face until it is told to stop, then unloads the server.

    Args:
        runtime: The server, ready.
        http: What its class declares.
        routes: Adds the server's own routes.
        sock: A socket that listens already, e.g. one that the next server will have as well; a port of its own
            (``Http(port=)``) unless given.
    """

    def __init__(
        self,
        runtime: ServerRuntime,
        http: Http,
        routes: Callable[[APIRouter], None],
        sock: socket.socket | None = None,
    ) -> None:
        self._runtime, self._http, self._routes, self._sock = runtime, http, routes, sock
        self._started: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave: asyncio.Event | None = None
        self._uvicorn: _Uvicorn | None = None
        self._thread = threading.Thread(target=self._main, name="gpuserve-http")

    def start(self) -> Self:
        """Open the port.

        Raises:
            KeysError: If the server has no keys.
            EngineError: If another program has the port.
        """
        self._thread.start()
        self._started.result()
        return self

    def stop(self) -> None:
        """Take no more connections, answer what came in, unload, and wait until all of it is done."""
        if self._loop is not None and self._leave is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread has ended by itself
                self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._uvicorn.server_state.connections) if self._uvicorn is not None else 0

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 (the last line of a thread: hand it on, or end the container)
            if not self._started.done():
                self._started.set_exception(EngineError(f"not started: {error}") if _is_exit(error) else error)
                return
            sys.stderr.write(f"the HTTP server failed, and the container leaves\n{traceback.format_exc()}")
            os.kill(os.getpid(), signal.SIGTERM)

    async def _serve(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        app = build_app(self._runtime, self._http, self._routes)
        drain_s = min(_DRAIN_S, self._http.timeout_s)
        with self._sock or _listen(self._http.port) as sock:
            config = uvicorn.Config(
                app,
                http=HttpProtocol,
                lifespan="on",
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(drain_s) + _FAREWELL_S,
                access_log=False,  # the guard writes a line a request
                log_config=None,
                proxy_headers=False,  # nobody in front is known well enough to be believed
                server_header=False,
            )
            self._uvicorn = _Uvicorn(config, self._started, self._leave, self._runtime, drain_s)
            await self._uvicorn.serve(sockets=[sock])
        await self._runtime.stop()


def _is_exit(error: BaseException) -> bool:
    # uvicorn leaves so when the application's own start-up failed, which its log has
    return isinstance(error, SystemExit)


def _listen(port: int) -> socket.socket:
    address = address_to_listen_on()
    try:
        return socket.create_server((address, port), backlog=_BACKLOG)
    except OSError as error:
        raise EngineError(
            f"cannot listen on {address}:{port}: {error.strerror}; write another one: Http(transport='server', port=…)"
        ) from error


class _Uvicorn(uvicorn.Server):
    """uvicorn, told to leave by an event, and leaving in two steps."""

    def __init__(
        self,
        config: uvicorn.Config,
        started: Future[None],
        leave: asyncio.Event,
        runtime: ServerRuntime,
        drain_s: float,
    ) -> None:
        super().__init__(config)
        self._told, self._leave, self._runtime, self._drain_s = started, leave, runtime, drain_s
        self.server_state: Connections = Connections()

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._told.set_result(None)

    @override
    async def main_loop(self) -> None:
        while not self._leave.is_set():
            await self.on_tick(0)  # the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._leave.wait()
        self._runtime.ready = False
        asyncio.get_running_loop().call_later(self._drain_s, self._runtime.cut_off)
        for server in self.servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self.server_state.let_go()
        # what is left, `shutdown` closes where it is idle, and waits for where it is not
