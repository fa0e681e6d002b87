"""An engine that kills itself in the middle of a call whose idempotency key says where: ``die-POINT-…``.

Points are numbered from 0: each SQL statement, each file that is made, moved or removed, and the answer, which is also
called ``answer``. A repeated call (``x-retry-attempt``) is left alone.
"""

import os
import signal
import sqlite3
import sys

import grpclib.server

from gpuserve.engine.__main__ import main

WATCHED = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


class Fate:
    """How many points are still to be passed; none where nothing is to happen."""

    left: int | None = None

    def reached(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def audit(self, event: str, arguments: tuple) -> None:
        if event in WATCHED or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
            self.reached()


def watch(fate: Fate) -> None:
    plain_connect, plain_receive = sqlite3.connect, grpclib.server.Stream.recv_message
    plain_send = grpclib.server.Stream.send_message

    def connect(*arguments, **options):
        database = plain_connect(*arguments, **options)
        database.set_trace_callback(lambda _statement: fate.reached())
        return database

    async def receive(stream):
        request = await plain_receive(stream)
        key = str(stream.metadata.get("x-idempotency-key", ""))
        if key.startswith("die-") and "x-retry-attempt" not in stream.metadata:
            point = key.split("-")[1]
            fate.left = sys.maxsize if point == "answer" else int(point)
        return request

    async def send(stream, message, **options):
        if fate.left is not None and fate.left > sys.maxsize // 2:
            fate.left = 0
        fate.reached()
        fate.left = None
        await plain_send(stream, message, **options)

    sqlite3.connect = connect
    grpclib.server.Stream.recv_message, grpclib.server.Stream.send_message = receive, send
    sys.addaudithook(fate.audit)


if __name__ == "__main__":
    watch(Fate())
    sys.exit(main())
