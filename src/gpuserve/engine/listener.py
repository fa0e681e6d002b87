"""A gRPC server on a socket, as grpclib has it, with the two things that it leaves open: many streams, few writes."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import grpclib.server
from grpclib.protocol import H2Protocol
from h2.settings import SettingCodes

__all__ = ["Listener"]

# Each waiting call holds a stream; at h2's own 100 a client that waits for 100 outputs could not put another input.
_MOST_STREAMS = 100_000


class _Gathering(asyncio.Transport):
    """A transport that sends what is written in one turn of the loop with one system call.

    grpclib writes an answer's headers, message and trailers one by one: three system calls here, and three
    times that whoever reads is woken. A profile of a map showed a third of the engine's time in them.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def _send(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.write(b"".join(pieces))

    def close(self) -> None:
        self._send()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class _Connection(H2Protocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Gathering(transport))
        self.connection._connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _MOST_STREAMS})
        self.connection.flush()


class Listener(grpclib.server.Server):
    """A gRPC server whose `close` also hangs up: a container's door must not outlive it on an open connection."""

    def __init__(self, servicer: Any) -> None:
        """Serve *servicer*, once started."""
        super().__init__([servicer])
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()

    def _protocol_factory(self) -> Any:
        plain = super()._protocol_factory()
        protocol = _Connection(plain.handler, plain.config, plain.h2_config)
        self._connections.add(protocol)
        return protocol

    def close(self) -> None:
        """Stop listening, break off what runs, and close every connection."""
        super().close()
        for protocol in list(self._connections):
            if hasattr(protocol, "connection"):
                protocol.connection.close()
