"""A container that is told to end: what it was answering is answered, what comes is sent elsewhere, `unload` runs."""

import asyncio
import concurrent.futures
import json
import urllib.request

import modal
import pytest

import gpuserve
from gpuserve.runtime.http.app import build_app
from gpuserve.runtime.http.draining import Draining
from gpuserve.runtime.server import ServerRuntime
from gpuserve.specs.batching import Batching

KEY = "0123456789abcdef0123456789"
APP = """
import os, signal
import modal, gpuserve

app = modal.App("leaving")
told = modal.Queue.from_name("told", create_if_missing=True)
VERSION = 1

@gpuserve.register(app)
class Slow(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="leaving-keys"))

    @gpuserve.batched
    def double(self, batch: list[int]) -> list[int]:
        return [2 * number for number in batch]

    @modal.method()
    def terminate(self):
        os.kill(os.getpid(), signal.SIGTERM)

    def routes(self, router):
        @router.get("/slow")
        async def slow():
            await told.put.aio("begun")
            await told.get.aio(partition="go on", timeout=20)
            return {"answer": await self.double.submit(21), "version": VERSION}

    def unload(self):
        told.put(f"unloaded {VERSION}")
"""


def get(url):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.parametrize("way", ["sigterm", pytest.param("redeployed", marks=pytest.mark.heavy)])
def test_a_request_that_was_begun_is_answered_by_a_container_that_leaves(engine, modal_cli, tmp_path, way):
    source = APP.replace('"leaving"', f'"leaving-{way}"').replace('"told"', f'"told-{way}"')
    (tmp_path / "leaving.py").write_text(source)
    modal_cli("secret", "create", "--force", "leaving-keys", f"GPUSERVE_API_KEYS=ci:{KEY}")
    modal_cli("deploy", "leaving.py")
    with engine.connected(), concurrent.futures.ThreadPoolExecutor(1) as beside:
        told = modal.Queue.from_name(f"told-{way}", create_if_missing=True)
        slow = modal.Cls.from_name(f"leaving-{way}", "Slow")()
        url = slow.web.get_web_url()
        answer = beside.submit(get, f"{url}/slow")
        assert told.get(timeout=20) == "begun"
        if way == "sigterm":
            slow.terminate.remote()
        else:
            (tmp_path / "leaving.py").write_text(source.replace("VERSION = 1", "VERSION = 2"))
            modal_cli("deploy", "leaving.py")
        told.put("go on", partition="go on")
        assert answer.result(20) == {"answer": 42, "version": 1}
        assert told.get(timeout=20) == "unloaded 1"
        told.put("go on", partition="go on")
        assert get(f"{url}/slow")["version"] == (1 if way == "sigterm" else 2)


class Doubler:
    def __init__(self):
        self.seen = []

    def load(self):
        pass

    to_device = warm_up = load

    def unload(self):
        self.seen.append("unload")

    def cost(self, item):
        return 1.0


def test_what_comes_while_the_server_leaves_is_refused_and_told_when_to_try_again(monkeypatch):
    import httpx

    monkeypatch.setenv("GPUSERVE_API_KEYS", f"ci:{KEY}")
    server = Doubler()

    async def go():
        begun, go_on = asyncio.Event(), asyncio.Event()
        runtime = ServerRuntime(
            server, name="Doubler", batching=Batching(), inputs={"double": int},
            methods={"double": lambda batch: [2 * one for one in batch]},
        )  # fmt: skip

        def routes(router):
            @router.get("/slow")
            async def slow():
                begun.set()
                await go_on.wait()
                return await runtime.submit("double", 21)

        await runtime.load()
        await runtime.make_ready()
        app = Draining(build_app(runtime, gpuserve.Http(), routes), runtime)
        headers = {"Authorization": f"Bearer {KEY}"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
            before = asyncio.create_task(client.get("/slow"))
            await begun.wait()
            runtime.drain()
            refused = await client.post("/double", json={"input": 1})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["code"] == "shutting_down"
            assert (await client.get("/ready")).status_code == 503
            assert (await client.get("/health")).status_code == 200
            go_on.set()
            assert (await before).json() == 42
        await runtime.stop()

    asyncio.run(go())
    assert server.seen == ["unload"]
