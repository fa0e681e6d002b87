"""`Http(transport="server")`: the container's own port, with the same guard and the same answers as any other."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import modal
import psutil
import pytest

import gpuserve
from gpuserve import DeclarationError, Http, ImageSpec, RegistrationError, SecretSpec
from gpuserve.engine import LocalEngine

KEY = "0123456789abcdef0123456789"
APP = """
import time
import modal, gpuserve
from pydantic import BaseModel

app = modal.App("both")
seen = modal.Queue.from_name("seen", create_if_missing=True)

class Order(BaseModel):
    item: str
    count: int

class Base(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()

    @gpuserve.batched
    def price(self, batch: list[Order]) -> list[dict]:
        if any(order.item == "boom" for order in batch):
            raise RuntimeError("secret internals")
        if any(order.item == "slow" for order in batch):
            seen.put("began")
            time.sleep(1.0)
        return [{"price": 3 * order.count, "item": order.item} for order in batch]

    @gpuserve.streaming
    def spell(self, word: str):
        if word == "boom":
            raise RuntimeError("secret internals")
        yield from word

    def unload(self):
        seen.put("unloaded")

    def routes(self, router):
        @router.get("/page")
        async def page():
            return {"page": True}

        @router.get("/frozen")
        async def frozen():
            import gc
            return {"frozen": gc.get_freeze_count()}

@gpuserve.register(app)
class Asgi(Base):
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="keys"), public_paths=("/page",), max_body_bytes=1000,
                         cors_origins=("https://example.com",))

@gpuserve.register(app)
class Served(Base):
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="keys"), public_paths=("/page",), max_body_bytes=1000,
                         cors_origins=("https://example.com",), transport="server", port=PORT)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


class Both:
    """The same server, deployed with each transport."""

    def __init__(self, engine: LocalEngine, folder: Path) -> None:
        self.engine, self.folder, self.port = engine, folder, free_port()
        self.cli("secret", "create", "keys", f"GPUSERVE_API_KEYS=ci:{KEY}")
        (folder / "both.py").write_text(APP.replace("PORT", str(self.port)))
        self.cli("deploy", "both.py")
        with engine.connected():
            self.asgi = modal.Cls.from_name("both", "Asgi")().web.get_web_url()
            self.served = modal.Server.from_name("both", "Served").get_url()

    def cli(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "modal", *arguments],
            env={**os.environ, **self.engine.environment, "COLUMNS": "200"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def told(self) -> str:
        with self.engine.connected():
            return modal.Queue.from_name("seen", create_if_missing=True).get(timeout=30)


@pytest.fixture(scope="module")
def both(engine, tmp_path_factory):
    return Both(engine, tmp_path_factory.mktemp("both"))


def ask(url, path, body=None, *, method=None, **headers):
    request = urllib.request.Request(url + path, data=body, headers=dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


# How HTTP itself goes, which each transport has its own way of.
_OF_THE_WAY = {"date", "server", "x-request-id", "location", "content-length", "transfer-encoding", "connection"}
AUTHORIZED = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
ASKED = [
    ("/health", None, {}),
    ("/ready", None, {}),
    ("/page", None, {}),
    ("/openapi.json", None, AUTHORIZED),
    ("/price", None, AUTHORIZED),
    ("/nowhere", b"{}", AUTHORIZED),
    ("/price/", b"{}", AUTHORIZED),
    ("/price", b'{"input": {"item": "\xc3\xa4pfel", "count": 7}}', AUTHORIZED),
    ("/price", b'{"input": {"item": "a", "count": 7}}', {**AUTHORIZED, "Content-Type": "application/json; x=1"}),
    ("/price", b'{"input": {"item": "a", "count": 7}}', {**AUTHORIZED, "Content-Type": "text/plain"}),
    ("/price", b'{"input": {"item": "a", "count": 7}}', {"Content-Type": "application/json"}),
    ("/price", b'{"input": {"item": "a", "count": 7}}', {**AUTHORIZED, "Authorization": "Bearer wrong"}),
    ("/price", b'{"input": {"item": "a", "count": 7}}', {**AUTHORIZED, "Origin": "https://example.com"}),
    ("/price", b'{"input": {"item": "a", "count": "7"}}', {**AUTHORIZED, "Origin": "https://example.com"}),
    ("/price", b'{"input": {"item": "a", "count": 7}}', {**AUTHORIZED, "Origin": "https://evil.example"}),
    ("/price", b"", AUTHORIZED),
    ("/price", b"{", AUTHORIZED),
    ("/price", b'{"input": NaN}', AUTHORIZED),
    ("/price", b'{"input": 1, "input": 2}', AUTHORIZED),
    ("/price", b'{"input": {"item": "a", "count": 7}, "extra": 1}', AUTHORIZED),
    ("/price", b" " * 2000, AUTHORIZED),
    ("/spell", b'{"input": "abc"}', AUTHORIZED),
    ("/spell", b'{"input": 3}', AUTHORIZED),
]


def test_a_server_answers_every_request_as_the_same_class_by_asgi_does(both):
    for path, body, headers in ASKED:
        by_asgi, by_port = (ask(url, path, body, **headers) for url in (both.asgi, both.served))
        if path == "/openapi.json":
            by_asgi = (by_asgi[0], by_asgi[1].replace(b'"title":"Asgi"', b'"title":"Served"'), by_asgi[2])
        assert by_port[:2] == by_asgi[:2], (path, body)
        kept = [{k: v for k, v in one[2].items() if k not in _OF_THE_WAY} for one in (by_asgi, by_port)]
        assert kept[1] == kept[0], (path, body)
        assert len(by_port[2].get("x-request-id", "")) == 32
    status, body, headers = ask(both.served, "/price", b'{"input": {"item": "boom", "count": 1}}', **AUTHORIZED)
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert headers["x-request-id"] in json.loads(body)["error"]["message"]
    assert ask(both.served, "/price", b'{"input": {"item": "a", "count": 7}}', **AUTHORIZED)[1] == (
        b'{"output":{"price":21,"item":"a"}}'
    )
    assert b'route="/price",status="200"' in ask(both.served, "/metrics", **AUTHORIZED)[1]


def test_what_the_start_made_is_out_of_the_garbage_collectors_rounds_with_each_transport(both):
    for url in (both.asgi, both.served):
        assert json.loads(ask(url, "/frozen", **AUTHORIZED)[1])["frozen"] > 10_000


def listeners(port):
    return [one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port]


def test_on_this_machine_the_port_is_open_on_loopback_alone(both):
    ask(both.served, "/health")
    assert {one.laddr.ip for one in listeners(both.port)} == {"127.0.0.1"}


def test_a_container_that_is_told_to_leave_answers_what_it_has_and_then_unloads(both):
    direct = f"http://127.0.0.1:{both.port}"
    ask(both.served, "/health")
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(ask, direct, "/price", b'{"input": {"item": "slow", "count": %d}}' % n, **AUTHORIZED)
            for n in range(8)
        ]
        assert both.told() == "began"
        served = psutil.Process(next(one.pid for one in listeners(both.port)))
        served.terminate()  # what Modal sends a server that it stops
        answers = [one.result() for one in asked]
    assert [status for status, _, _ in answers] == [200] * 8
    assert sorted(json.loads(body)["output"]["price"] for _, body, _ in answers) == [3 * n for n in range(8)]
    while (said := both.told()) == "began":
        continue
    assert said == "unloaded"
    served.wait(30)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{direct}/health", timeout=5)


class Alone(gpuserve.WarmModelServer):
    image = ImageSpec.debian("3.11")
    http = Http(keys=SecretSpec(name="keys"), transport="server")

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch


def test_a_registered_server_says_where_it_is_and_that_rpc_is_not_there():
    registered = gpuserve.register(modal.App("handles"))(Alone)
    assert isinstance(registered, modal.Server)
    with pytest.raises(RegistrationError, match=r"served over HTTP alone.*POST \{url\}/predict.*transport='asgi'"):
        registered().predict.remote(1)
    with pytest.raises(RegistrationError, match=r"no parameters.*transport='asgi'"):
        registered(size=3)
    with pytest.raises(RegistrationError, match="subclass an unregistered base"):

        class Child(registered):
            pass


def test_all_that_only_rpc_brings_is_refused_at_once_when_the_class_is_defined():
    with pytest.raises(DeclarationError) as refused:

        class Wrong(gpuserve.WarmModelServer):
            http = Http(transport="server")
            gpu = "H999"
            retries = 2
            timeout_s = 20
            max_parameter_sets = 3
            env = {"MODAL_CLOUD_PROVIDER": "x"}  # noqa: RUF012
            size: int = modal.parameter(default=3)

    faults = refused.value.faults
    assert len(faults) == 6
    for name in ("retries", "timeout_s", "max_parameter_sets", "size"):
        assert [one for one in faults if one.startswith(name) and "transport='asgi'" in one], name
    assert any("'H999'" in one for one in faults)
    assert any("'MODAL_CLOUD_PROVIDER'" in one for one in faults)


def test_methods_and_arguments_of_modals_own_are_refused_when_the_class_is_registered():
    class Wrong(gpuserve.WarmModelServer):
        http = Http(transport="server")
        image = ImageSpec.debian("3.11")

        @modal.enter()
        def before(self):
            pass

        @modal.method()
        def about(self):
            pass

        @modal.fastapi_endpoint()
        def page(self):
            pass

    with pytest.raises(DeclarationError) as refused:
        gpuserve.register(modal.App("refused"), modal={"timeout": 3, "h2_enabled": False})(Wrong)
    assert [one.partition(" ")[0] for one in refused.value.faults] == ["modal", "about", "page"]
    assert all("transport='asgi'" in one for one in refused.value.faults)
    with pytest.raises(DeclarationError, match="port=9000 with transport='asgi'"):
        Http(port=9000)
