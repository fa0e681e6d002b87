"""The launcher by itself: containers that are given up, signalled too early, or cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from gpuserve.engine.workers.launcher import Container, ContainerSpec, Launcher


def spec(task_id: str) -> ContainerSpec:
    """A container that ends at once: its working folder cannot be made."""
    return ContainerSpec(task_id, b"", {}, "unix:///nowhere", workdir="/proc/nowhere")


@pytest.mark.parametrize("isolation", ["auto", "links"])
def test_a_start_that_is_given_up_leaves_no_process_and_the_next_one_is_still_heard(isolation, tmp_path):
    said: list[bytes] = []

    async def run() -> int:
        launcher = Launcher(tmp_path / "containers", tmp_path / "lock", isolation=isolation)
        await launcher.start()
        try:
            given_up = asyncio.ensure_future(launcher.launch(spec("ta-one"), lambda _, data: said.append(data)))
            while "ta-one" not in launcher._started:
                await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            said.clear()
            second = await launcher.launch(spec("ta-two"), lambda _, data: said.append(data))
            code = await second.wait()
            zygote = psutil.Process(launcher._process.pid)
            until = time.monotonic() + 20
            while zygote.children(recursive=True) and time.monotonic() < until:
                await asyncio.sleep(0.01)
            assert zygote.children(recursive=True) == []
            assert list((tmp_path / "containers").glob("ta-*")) == []
            return code
        finally:
            await launcher.close()

    assert asyncio.run(run()) == 70
    assert b"/proc/nowhere" in b"".join(said)


def test_a_container_that_has_no_process_yet_is_signalled_to_nobody(monkeypatch):
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        container = Container("ta-one", 0, True, loop.create_future(), loop.create_future())
        container.interrupt()
        container.kill()
        container.pid = 4242
        container.kill()

    asyncio.run(run())
    assert sent == [(4242, signal.SIGKILL)]
