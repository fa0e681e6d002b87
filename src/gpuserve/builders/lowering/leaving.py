"""What a container of a served class does when it is told to end."""

from __future__ import annotations

import asyncio
import signal
import threading

import modal.experimental

from gpuserve.runtime.server import ServerRuntime

__all__ = ["drain_on_sigterm"]

# Seconds: five less than a container is given to leave. Source: modal 1.6.4's container, "up to 30 seconds".
_DRAIN_S = 25.0


def drain_on_sigterm(runtime: ServerRuntime) -> None:
    """On SIGTERM, take nothing new, finish what was begun, and leave by Modal's own door.

    Modal's runtime leaves SIGTERM to the system, which ends the process with whatever it was answering; asked to
    stop fetching, it ends what it runs, runs the exit hooks and commits volumes.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # signals are the main thread's; its runtime has the loop of the class there
    loop = asyncio.get_running_loop()
    leaving: list[asyncio.Task[None]] = []

    async def leave() -> None:
        await modal.experimental.stop_fetching_inputs.aio()

    def begin() -> None:
        if not leaving:
            runtime.drain()
            loop.call_later(_DRAIN_S, runtime.cut_off)
            leaving.append(loop.create_task(leave(), name="gpuserve-leave"))

    loop.add_signal_handler(signal.SIGTERM, begin)
