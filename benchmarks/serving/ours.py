"""`python -m benchmarks.serving.ours CASE PORT LOG`: one server behind its own port, in a process of its own.

It does what the container of a class with ``transport="server"`` does when it starts and when it is told to leave.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import gpuserve
from benchmarks.serving.models import Embed, Generate, Noop, Slow
from gpuserve.builders.local import runtime_for
from gpuserve.runtime.http.serve import HttpThread
from gpuserve.runtime.server import settle

__all__: list[str] = []

_SERVERS = {"noop": Noop, "slow": Slow, "embed": Embed, "generate": Generate}


def main(case: str, port: int, log: str) -> None:
    """Serve until SIGTERM."""
    server: gpuserve.WarmModelServer = _SERVERS[case]()
    http = gpuserve.Http(transport="server", port=port, requests_per_minute=1_000_000, burst=1_000_000)
    type(server).http = http
    type(server).telemetry = gpuserve.Telemetry(file=log)
    runtime = runtime_for(server)
    server._gpuserve_runtime = runtime

    async def start() -> None:
        await runtime.load()
        await runtime.make_ready()

    asyncio.run(start())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    thread = HttpThread(runtime, http, server.routes).start()
    settle()
    signal.sigwait({signal.SIGTERM})
    thread.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
