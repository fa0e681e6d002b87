"""A TCP proxy that misbehaves as told: what a client and a server make of a bad network, tested on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

from gpuserve.exceptions import DeclarationError
from gpuserve.testing.toxics import Direction, Down, Ending, Link, Timed, Toxic, through

__all__ = ["FaultProxy"]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_PIECE = 1 << 16
# What may be under way in one direction, in bytes: more than that, and the sender has to wait. Source: our choice.
_MOST_UNDER_WAY = 1 << 20
_NO_LINGER = struct.pack("ii", 1, 0)


class FaultProxy:
    """Stands before a server, on a port of loopback of its own, and does to each connection what its toxics say.

    It runs on a thread of its own, and serves plain and asyncio code alike. The same *seed* throws the same dice.

    Args:
        upstream: The server: ``http://127.0.0.1:8000``, ``127.0.0.1:8000`` or ``unix:///path/to/socket``.
        toxics: What befalls connections from the start; `apply` says what befalls later ones.
        seed: Of jitter, sizes and toxicity.

    Raises:
        DeclarationError: If *upstream* is no address.

    Examples:
        >>> import socket
        >>> from gpuserve.testing import FaultProxy, LimitData
        >>> with socket.create_server(("127.0.0.1", 0)) as server:
        ...     with FaultProxy(f"127.0.0.1:{server.getsockname()[1]}", LimitData(bytes=3)) as proxy:
        ...         client = socket.create_connection(("127.0.0.1", proxy.port))
        ...         answering, _ = server.accept()
        ...         answering.sendall(b"seven bytes")
        ...         client.recv(100), client.recv(100)
        ...         client.close(), answering.close()
        (b'sev', b'')
        (None, None)
    """

    def __init__(self, upstream: str, *toxics: Toxic, seed: int = 0) -> None:
        self._connect = _opener(upstream)
        self._toxics: tuple[Toxic, ...] = toxics
        self._dice = random.Random(seed)  # noqa: S311 (no secret)
        self._sock = _bound(0)
        self._server: asyncio.Server | None = None
        self._live: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gpuserve-fault-proxy", daemon=True)
        self.port: int = self._sock.getsockname()[1]
        self.accepted = 0

    @property
    def url(self) -> str:
        """Where clients go instead of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._live)

    def __enter__(self) -> Self:
        """Listen, unless it is to be down."""
        self._thread.start()
        self.apply(*self._toxics)
        return self

    def __exit__(self, *_: object) -> None:
        """Reset what is open, and end."""
        self._run(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._sock.close()

    def apply(self, *toxics: Toxic) -> None:
        """Have these toxics, and no others, befall the connections that come from now on; none: all is well again.

        Those that are open keep theirs, except that `Down` resets them.
        """

        async def change() -> None:
            self._toxics = toxics
            if any(isinstance(one, Down) for one in toxics):
                await self._stop()
            elif self._server is None:
                if self._sock.fileno() < 0:
                    self._sock = _bound(self.port)
                self._server = await asyncio.start_server(self._serve, sock=self._sock, backlog=512)

        self._run(change)

    @contextlib.contextmanager
    def toxics(self, *toxics: Toxic) -> Iterator[None]:
        """`apply` these within a block; the ones of before come back after it."""
        before = self._toxics
        self.apply(*toxics)
        try:
            yield
        finally:
            self.apply(*before)

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        live = list(self._live)
        for connection in live:
            connection.reset()
        await asyncio.gather(*(connection.over.wait() for connection in live))

    async def _end(self) -> None:
        await self._stop()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:  # those that were still on their way to the server
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            upstream = await self._connect()
        except OSError:
            _reset(writer)  # as a server that is not there looks to a client of its own
            return
        befall = [one for one in self._toxics if self._dice.random() < one.toxicity]
        links: dict[Direction, list[Link]] = {
            way: [one.link(self._dice) for one in befall if one.direction == way] for way in ("upstream", "downstream")
        }
        connection = _Connection((reader, writer), upstream, links["upstream"], links["downstream"])
        self._live.add(connection)
        try:
            await connection.run()
        finally:
            self._live.discard(connection)
            connection.over.set()


class _Connection:
    """A client's connection and the server's, and what is under way between them."""

    def __init__(self, client: Stream, server: Stream, upward: Sequence[Link], downward: Sequence[Link]) -> None:
        self._writers = (client[1], server[1])
        self._ended = asyncio.Event()
        self.over = asyncio.Event()
        self._pumps = (
            _Pump(client[0], server[1], upward, self.end),
            _Pump(server[0], client[1], downward, self.end),
        )

    async def run(self) -> None:
        """Carry what comes, until both sides have ended or one way says how it ends."""
        ways = [asyncio.ensure_future(pump.run()) for pump in self._pumps]
        whole = asyncio.ensure_future(asyncio.wait(ways))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((whole, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*ways, whole, ended):
                task.cancel()
            await asyncio.gather(*ways, whole, ended, return_exceptions=True)
            for writer in self._writers:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def end(self, how: Ending) -> None:
        """Close or reset both sides."""
        if how is Ending.RESET:
            for writer in self._writers:
                _reset(writer)
        self._ended.set()

    def reset(self) -> None:
        """Reset both sides now."""
        self.end(Ending.RESET)


class _Pump:
    """One direction: reads at once, and writes when it is due."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        links: Sequence[Link],
        end: Callable[[Ending], None],
    ) -> None:
        self._reader, self._writer, self._links, self._end = reader, writer, links, end
        self._due: list[tuple[float, int, bytes | Ending]] = []
        self._numbers = itertools.count()
        self._under_way = 0
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._now = asyncio.get_running_loop().time
        for place, link in enumerate(links):
            self._plan(through(links[place + 1 :], link.begin(self._now())))

    async def run(self) -> None:
        """Until the sender has ended, and its end has got through."""
        reading = asyncio.ensure_future(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            try:
                data = await self._reader.read(_PIECE)
            except OSError:
                self._end(Ending.RESET)  # what one side did is done to the other
                return
            now = self._now()
            self._plan(through(self._links, iter([(now, data or Ending.END)])))
            if not data:
                return
            while self._under_way > _MOST_UNDER_WAY:
                self._room.clear()
                await self._room.wait()

    def _plan(self, found: Iterable[Timed]) -> None:
        for due, what in found:
            heapq.heappush(self._due, (due, next(self._numbers), what))
            self._under_way += len(what) if isinstance(what, bytes) else 0
        self._changed.set()

    async def _write(self) -> None:
        while True:
            self._changed.clear()
            wait = self._due[0][0] - self._now() if self._due else None
            if wait is None or wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
                continue
            what = heapq.heappop(self._due)[2]
            if isinstance(what, bytes):
                self._under_way -= len(what)
                self._room.set()
                self._writer.write(what)
                with contextlib.suppress(OSError):  # the reading side of it tells
                    await self._writer.drain()
            elif what is Ending.END:
                with contextlib.suppress(OSError):
                    self._writer.write_eof()
                return
            else:
                self._end(what)
                return


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


def _bound(port: int) -> socket.socket:
    """A port that is ours though nobody listens yet: to connect to it is refused."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def _opener(upstream: str) -> Callable[[], Awaitable[Stream]]:
    parts = urlsplit(upstream if "://" in upstream else f"tcp://{upstream}")
    if parts.scheme == "unix" and parts.path:
        return lambda: asyncio.open_unix_connection(parts.path)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in {"http", "tcp"} or not host or not port:
        fault = f"upstream is {upstream!r}; write http://HOST:PORT, HOST:PORT or unix:///PATH"
        raise DeclarationError("FaultProxy", (fault,))
    return lambda: asyncio.open_connection(host, port)
