"""Web endpoints of every kind, asked over real connections."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from gpuserve.engine import LocalEngine

SOURCE = Path(__file__).with_name("http_app.py")
ADDRESSES = """
import json, modal
site = modal.Cls.from_name("web", "Site")()
urls = {name: modal.Function.from_name("web", name).get_web_url()
        for name in ("hello", "double", "wsgi", "program", "unreachable", "busy")}
urls |= {"site": site.web.get_web_url(), "add": site.add.get_web_url()}
urls["proxied"] = modal.Server.from_name("web", "Proxied").get_url()
print(json.dumps(urls))
"""


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def modal(engine: LocalEngine, *command: str, **environment: str) -> str:
    whole = {**os.environ, **engine.environment, **environment}
    done = subprocess.run(
        [sys.executable, *command],
        env=whole,
        cwd=SOURCE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Web:
    """The deployed app: its addresses, and what its containers told through the queue ``seen``."""

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        names = ("SERVER_PORT", "PROXIED_PORT", "BUSY_PORT", "LOCAL_PORT")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        modal(engine, "-m", "modal", "deploy", str(SOURCE), **{name: str(port) for name, port in self.ports.items()})
        self.urls = json.loads(modal(engine, "-c", ADDRESSES))
        token = json.loads(modal(engine, "-m", "modal", "workspace", "proxy-tokens", "create", "--json"))
        self.key = {"Modal-Key": token["Modal-Key"], "Modal-Secret": token["Modal-Secret"]}

    def told(self, partition: str, count: int = 1) -> list:
        program = f"""
import json, modal
seen = modal.Queue.from_name("seen")
print(json.dumps([seen.get(partition={partition!r}, timeout=20) for _ in range({count})]))
"""
        return json.loads(modal(self.engine, "-c", program))

    def say(self, partition: str) -> None:
        modal(self.engine, "-c", f"import modal; modal.Queue.from_name('seen').put(1, partition={partition!r})")


@pytest.fixture(scope="module")
def web():
    with LocalEngine() as engine:
        yield Web(engine)


def asking(work):
    """Run a coroutine function with a client session of its own."""

    async def run():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            return await work(session)

    return asyncio.run(run())


def get(url: str, method: str = "GET", **options) -> tuple[int, bytes, dict]:
    async def work(session):
        async with session.request(method, url, allow_redirects=False, **options) as reply:
            return reply.status, await reply.read(), reply.headers.copy()

    return asking(work)


def raw(url: str, text: bytes) -> bytes:
    """Send bytes as they are, and read until the server hangs up."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(text)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_endpoints_made_of_functions_answer_with_their_label_docs_and_keys(web):
    assert get(f"{web.urls['hello']}?name=Zoë")[:2] == (200, '{"hello":"Zoë"}'.encode())
    assert b"/openapi.json" in get(f"{web.urls['hello']}/docs")[1]
    assert get(f"{web.urls['double']}/docs", headers=web.key)[0] == 404
    assert get(web.urls["hello"], "POST")[0] == 405
    assert "my-own-label" in web.engine.core.ingress._endpoints

    item = {"json": {"x": 21}}
    assert get(web.urls["double"], "POST", headers=web.key, **item)[:2] == (200, b'{"x":42}')
    bearer = {"Authorization": f"Bearer {web.key['Modal-Key']}.{web.key['Modal-Secret']}"}
    assert get(web.urls["double"], "POST", headers=bearer, **item)[0] == 200
    for headers in ({}, {"Modal-Key": web.key["Modal-Key"]}, {**web.key, "Modal-Secret": "ws-wrong"}):
        status, body, _ = get(web.urls["double"], "POST", headers=headers, **item)
        assert (status, body) == (401, b"modal-http: missing credentials for proxy authorization")


def test_the_app_gets_the_request_as_it_was_sent(web):
    site = web.urls["site"]
    text = (
        "GET /caf%C3%A9/%2Fa%20b//?q=%7Ex+y&q=2&empty= HTTP/1.1\r\nHost: {host}\r\nX-One: 1\r\nX-One: 2\r\n"
        "X-Forwarded-For: 6.6.6.6\r\nModal-Key: wk-x\r\nModal-Secret: ws-x\r\nConnection: close\r\n\r\n"
    ).format(host=site.removeprefix("http://"))
    head, _, body = raw(site, text.encode()).partition(b"\r\n\r\n")
    found = json.loads(body.partition(b"{")[1] + body.partition(b"{")[2].rpartition(b"}")[0] + b"}")

    assert found["path"] == "/café//a b//"
    assert found["query"] == "q=%7Ex+y&q=2&empty="
    assert (found["method"], found["scheme"], found["http_version"], found["client"]) == (
        "GET",
        "http",
        "1.1",
        "127.0.0.1",
    )
    assert [value for name, value in found["headers"] if name == "x-one"] == ["1", "2"]
    assert not {"x-forwarded-for", "modal-key", "modal-secret"} & {name for name, _ in found["headers"]}
    assert head.lower().count(b"set-cookie:") == 2

    assert get(f"{site}/head", "HEAD")[1:2] == (b"",)
    assert get(f"{site}/head", "HEAD")[2]["Content-Length"] == "5"
    assert get(f"{site}/head")[1] == b"12345"
    assert get(f"{site}/empty")[:2] == (204, b"")
    assert get(f"{web.urls['wsgi']}/some/path/", "PUT", data=b"123")[:2] == (201, b"PUT 3")
    assert get(f"{web.urls['wsgi']}/some/path/")[2].getall("Set-Cookie") == ["a=1", "b=2"]


def test_only_requests_to_a_loopback_name_are_answered(web):
    for url in (web.urls["hello"], web.urls["site"], web.urls["proxied"]):
        for host in ("evil.example", f"evil.example:{url.rpartition(':')[2]}", "127.0.0.1:1"):
            assert get(url, headers={"Host": host, **web.key})[0] == 421
            upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Host": host, **web.key}
            assert get(f"{url}/ws", headers=upgrade)[0] == 421
    local = web.urls["hello"].replace("127.0.0.1", "LOCALHOST")
    assert get(web.urls["hello"], headers={"Host": local.removeprefix("http://")})[0] == 200


@pytest.mark.parametrize("megabytes", [3, 30])
def test_large_bodies_pass_both_ways(web, megabytes):
    body = b"u" * (megabytes << 20)
    sent = get(f"{web.urls['site']}/size", "POST", data=io.BytesIO(body), headers={"Expect": "100-continue"})
    got = get(f"{web.urls['site']}/large?{megabytes}")
    whole = get(f"{web.urls['site']}/whole?{megabytes << 20}")

    assert sent[:2] == (200, str(len(body)).encode())
    assert len(got[1]) == megabytes << 20
    assert [got[1][number << 20] for number in range(megabytes)] == list(range(megabytes))
    assert whole[1] == b"w" * (megabytes << 20)


def test_a_client_that_reads_slowly_holds_the_app_back_and_not_in_memory(web):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def work(session):
        async with session.get(f"{web.urls['site']}/large?400") as reply:
            first = await reply.content.readexactly(1 << 20)
            await asyncio.sleep(1.0)  # the app could send all of it in this time
            rest = 0
            async for piece in reply.content.iter_chunked(1 << 20):
                rest += len(piece)
            return len(first) + rest

    assert asking(work) == 400 << 20
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 200 << 10


def test_a_stream_arrives_event_by_event(web):
    async def work(session):
        found = []
        async with session.get(f"{web.urls['site']}/events") as reply:
            kind = reply.headers["Content-Type"]
            while event := await reply.content.readuntil(b"\n\n") if len(found) < 3 else b"":
                found.append(event)
                await asyncio.to_thread(web.say, "next")
            return kind, found

    assert asking(work) == ("text/event-stream", [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"])


def test_a_failure_before_the_answer_is_500_and_one_within_it_cuts_the_connection(web):
    status, body, _ = get(f"{web.urls['site']}/fails")
    assert (status, json.loads(body)["error"]["type"]) == (500, "engine_error")
    with pytest.raises(aiohttp.ClientPayloadError):
        get(f"{web.urls['site']}/breaks")
    assert get(f"{web.urls['site']}/head")[0] == 200


def test_work_after_the_answer_is_finished(web):
    assert get(f"{web.urls['site']}/after")[1] == b"answered"
    assert web.told("after") == ["after the answer"]


def test_a_client_that_leaves_is_told_to_the_app_and_frees_its_place(web):
    async def work(session):
        with pytest.raises(asyncio.TimeoutError):
            await session.get(f"{web.urls['site']}/hangs", timeout=aiohttp.ClientTimeout(total=3))

    asking(work)
    assert web.told("hangs", 3) == ["began", "http.disconnect", "cancelled"]


def test_requests_of_one_class_share_one_container_and_run_side_by_side(web):
    async def work(session):
        async def one():
            async with session.get(f"{web.urls['site']}/meet?50") as reply:
                return await reply.read()

        return await asyncio.gather(*(one() for _ in range(50)))

    assert set(asking(work)) == {b"50"}
    added = [json.loads(get(web.urls["add"])[1]) for _ in range(2)]
    called = modal(web.engine, "-c", "import modal; print(modal.Cls.from_name('web', 'Site')().count.remote())")
    assert added[1] == added[0] + 1 == int(called)


def test_an_answer_that_takes_long_is_fetched_where_the_client_is_sent(web):
    web.engine.core.ingress.http.first_byte_s = 0.2
    try:
        status, _, headers = get(f"{web.urls['site']}/slow?1")
        assert status == 303
        assert headers["Location"].startswith("/slow?1&__modal_function_call_id=fc-")
        assert get(f"{web.urls['site']}{headers['Location']}")[0] == 303

        async def work(session):
            async with session.get(f"{web.urls['site']}/slow?1") as reply:
                return reply.status, await reply.read(), len(reply.history)

        status, body, hops = asking(work)
        assert (status, body) == (200, b"late")
        assert hops >= 2
    finally:
        web.engine.core.ingress.http.first_byte_s = 150.0


def test_websockets_pass_text_bytes_codes_and_subprotocols_both_ways(web):
    async def work(session):
        url = f"{web.urls['site']}/ws"
        found = {}
        async with session.ws_connect(url, protocols=["first", "second"]) as ws:
            found["protocol"], found["greeting"] = ws.protocol, ws._response.headers["X-Greeting"]
            await ws.send_str("grüße")
            found["text"] = await ws.receive_str(timeout=20)
            await ws.send_bytes(b"\0\1\2")
            found["bytes"] = await ws.receive_bytes(timeout=20)
            await ws.send_bytes(b"x" * (3 << 20))
            found["large"] = len(await ws.receive_bytes(timeout=20))
            await ws.close(code=4010)
        async with session.ws_connect(url) as ws:
            await ws.send_str("close")
            message = await ws.receive(timeout=20)
            found["closed"] = [message.type.name, message.data, message.extra]
        async with session.ws_connect(url) as ws:
            await ws.send_str("fail")
            found["failed"] = (await ws.receive(timeout=20)).data
        for kind in ("refused", "broken"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await session.ws_connect(url, protocols=[kind])
            found[kind] = refusal.value.status
        ws = await session.ws_connect(url)
        ws._response.connection.transport.abort()  # no goodbye
        await ws.close()
        return found

    assert asking(work) == {
        "protocol": "second", "greeting": "hi", "text": "GRÜSSE", "bytes": b"\2\1\0", "large": 3 << 20,
        "closed": ["CLOSE", 4001, "as you say"], "failed": 1011, "refused": 403, "broken": 500,
    }  # fmt: skip
    left = web.told("ws", 2)
    assert left == [["left", 4010], ["left", 1006]]


@pytest.mark.parametrize("name", ["program", "proxied"])
def test_a_program_behind_a_port_is_reached_with_streams_and_websockets(web, name):
    url, key = web.urls[name], web.key
    if name == "proxied":
        assert get(url)[0] == 401  # servers ask for a key unless told otherwise

    async def work(session):
        async with session.post(URL(f"{url}/a%20b?q=%7E1", encoded=True), data=io.BytesIO(b"x" * (3 << 20))) as reply:
            about = await reply.json()
        async with session.get(f"{url}/stream") as reply:
            stream = [await reply.content.readuntil(b"\n\n") for _ in range(3)]
        async with session.ws_connect(f"{url}/ws", protocols=["chat"]) as ws:
            await ws.send_str("abc")
            await ws.send_bytes(b"\0\1")
            talk = [ws.protocol, await ws.receive_str(timeout=20), await ws.receive_bytes(timeout=20)]
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
            async with session.get(f"{url}/cut") as reply:
                await reply.read()
        return about, stream, talk

    async def run():
        async with aiohttp.ClientSession(headers=key) as session:
            return await work(session)

    about, stream, talk = asyncio.run(run())
    assert (about["method"], about["size"]) == ("POST", 3 << 20)
    assert about["path"] == ("/a%20b?q=%7E1" if name == "proxied" else "/a%20b?q=~1")
    assert not {"modal-key", "modal-secret"} & set(about["headers"])
    assert stream == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert talk == ["chat", "cba", b"\1\0"]


def test_a_program_that_only_this_machine_could_reach_fails_as_it_would_on_modal(web):
    status, _, _ = get(web.urls["unreachable"])
    assert status == 500
    logs = modal(web.engine, "-m", "modal", "app", "logs", "web")
    assert "Make sure the web server is bound to 0.0.0.0" in logs


def test_a_port_that_another_program_has_is_named_instead_of_that_program_answering(web):
    with socket.create_server(("0.0.0.0", web.ports["BUSY_PORT"])):
        assert get(web.urls["busy"])[0] == 500
    logs = modal(web.engine, "-m", "modal", "app", "logs", "web")
    assert f"port {web.ports['BUSY_PORT']} of this machine is in use by another program" in logs


def test_addresses_are_the_same_after_a_restart_and_a_redeployment(tmp_path):
    (tmp_path / "app.py").write_text(
        "import modal\n"
        'app = modal.App("stays")\n'
        'image = modal.Image.debian_slim().pip_install("fastapi")\n'
        "@app.function(image=image)\n@modal.fastapi_endpoint()\ndef hello(): return 1\n"
    )
    program = "import modal; print(modal.Function.from_name('stays', 'hello').get_web_url())"
    found = []
    for _ in range(2):
        with LocalEngine(tmp_path / "home") as engine:
            if not found:
                modal(engine, "-m", "modal", "deploy", str(tmp_path / "app.py"))
            found.append(modal(engine, "-c", program).strip())
            assert get(found[-1])[:2] == (200, b"1")
    assert found[0] == found[1]


def test_a_served_app_has_an_address_of_its_own_that_outlives_each_change(web, tmp_path):
    source = (
        "import modal\n"
        'app = modal.App("Served")\n'
        'image = modal.Image.debian_slim().pip_install("fastapi")\n'
        '@app.function(image=image)\n@modal.fastapi_endpoint(label="mine")\ndef hello(): return VERSION\n'
    )

    def answers(wanted: bytes) -> str:
        until, written = time.monotonic() + 40, 0.0
        while time.monotonic() < until:
            if time.monotonic() > written + 5:  # a change before the client watches is not seen
                (tmp_path / "app.py").write_text(source.replace("VERSION", wanted.decode()))
                written = time.monotonic()
            for label, endpoint in list(web.engine.core.ingress._endpoints.items()):
                if label == "mine-dev" and get(endpoint.url)[1] == wanted:
                    return endpoint.url
            time.sleep(0.05)
        raise AssertionError(f"no endpoint answered {wanted!r}")

    (tmp_path / "app.py").write_text(source.replace("VERSION", "1"))
    whole, command = {**os.environ, **web.engine.environment}, [sys.executable, "-m", "modal", "serve", "app.py"]
    serving = subprocess.Popen(command, cwd=tmp_path, env=whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        first, second = answers(b"1"), answers(b"2")
    finally:
        serving.send_signal(signal.SIGINT)
        said = serving.communicate(timeout=30)[0].decode()
    assert first == second
    assert first in said
    with pytest.raises(aiohttp.ClientConnectorError):
        get(first)
