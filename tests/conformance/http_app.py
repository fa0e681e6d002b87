"""A plain Modal app with an endpoint of every kind, deployed by `test_http.py`."""

import asyncio
import os
import subprocess
import sys
import time

import modal

app = modal.App("web")
PORTS = {name: os.environ.get(name, "1") for name in ("SERVER_PORT", "PROXIED_PORT", "BUSY_PORT", "LOCAL_PORT")}
image = modal.Image.debian_slim().pip_install("fastapi", "aiohttp").env(PORTS)
seen = modal.Queue.from_name("seen", create_if_missing=True)

# A program of its own behind a port: HTTP, streams, websockets, and a mark of which start it is.
PROGRAM = """
import asyncio, sys, os
from aiohttp import web, WSMsgType
async def about(request):
    body = await request.read()
    return web.json_response({"path": request.raw_path, "method": request.method, "size": len(body),
                              "headers": {k.lower(): v for k, v in request.headers.items()}, "pid": os.getpid()})
async def stream(request):
    reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await reply.prepare(request)
    for i in range(3):
        await reply.write(f"data: {i}\\n\\n".encode())
        if i == 0: await asyncio.sleep(0.2)
    return reply
async def cut(request):
    reply = web.StreamResponse()
    await reply.prepare(request)
    await reply.write(b"half")
    request.transport.abort()
    return reply
async def talk(request):
    ws = web.WebSocketResponse(protocols=("chat",))
    await ws.prepare(request)
    async for message in ws:
        if message.type == WSMsgType.TEXT: await ws.send_str(message.data[::-1])
        else: await ws.send_bytes(message.data[::-1])
    return ws
app = web.Application(client_max_size=1 << 30)
app.router.add_get("/stream", stream); app.router.add_get("/ws", talk); app.router.add_get("/cut", cut)
app.router.add_route("*", "/{rest:.*}", about)
web.run_app(app, host=sys.argv[1], port=int(sys.argv[2]), print=None)
"""


def start(host: str, port: str) -> None:
    subprocess.Popen([sys.executable, "-c", PROGRAM, host, port])


@app.function(image=image)
@modal.fastapi_endpoint(docs=True, label="My-Own_label")
def hello(name: str = "you"):
    return {"hello": name}


@app.function(image=image)
@modal.fastapi_endpoint(method="POST", requires_proxy_auth=True)
def double(item: dict):
    return {"x": item["x"] * 2}


@app.function(image=image)
@modal.wsgi_app()
def wsgi():
    def answer(environ, start_response):
        body = environ["wsgi.input"].read()
        start_response("201 Created", [("X-Path", environ["PATH_INFO"]), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        return [environ["REQUEST_METHOD"].encode(), b" ", str(len(body)).encode()]

    return answer


@app.cls(image=image, max_containers=1)
@modal.concurrent(max_inputs=60)
class Site:
    @modal.enter()
    def load(self):
        self.n, self.running, self.peak = 0, 0, 0

    @modal.method()
    def count(self):
        return self.n

    @modal.fastapi_endpoint()
    def add(self):
        self.n += 1
        return self.n

    @modal.asgi_app()
    def web(self):
        return Raw(self)


class Raw:
    """An ASGI app with no framework between it and the runtime."""

    def __init__(self, site):
        self.site = site

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        handler = getattr(self, scope["path"].strip("/").partition("/")[0] or "root", None) or self.root
        await handler(scope, receive, send)

    async def reply(self, send, body=b"", status=200, headers=(), **more):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body, **more})

    async def root(self, scope, receive, send):
        import json

        self.site.n += 1
        kept = {key: scope[key] for key in ("path", "method", "scheme", "http_version")}
        kept["query"] = scope["query_string"].decode("latin-1")
        kept["headers"] = [[name.decode(), value.decode()] for name, value in scope["headers"]]
        kept["client"] = scope["client"][0]
        cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-type", b"application/json")]
        await self.reply(send, json.dumps(kept).encode(), headers=cookies)

    async def size(self, scope, receive, send):
        total = 0
        while True:
            message = await receive()
            total += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await self.reply(send, str(total).encode())

    async def large(self, scope, receive, send):
        pieces = int(scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-kind", b"large")]})
        for number in range(pieces):
            await send({"type": "http.response.body", "body": bytes([number % 251]) * (1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def whole(self, scope, receive, send):
        await self.reply(send, b"w" * int(scope["query_string"]))

    async def events(self, scope, receive, send):
        """Each event waits for the client to have seen the one before."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            await send({"type": "http.response.body", "body": f"data: {number}\n\n".encode(), "more_body": True})
            await seen.get.aio(partition="next", timeout=20)
        await send({"type": "http.response.body", "body": b""})

    async def head(self, scope, receive, send):
        await self.reply(send, b"" if scope["method"] == "HEAD" else b"12345", headers=[(b"content-length", b"5")])

    async def empty(self, scope, receive, send):
        await self.reply(send, status=204)

    async def after(self, scope, receive, send):
        await self.reply(send, b"answered")
        await asyncio.sleep(0.3)  # what a framework's background task does
        await seen.put.aio("after the answer", partition="after")

    async def fails(self, scope, receive, send):
        raise RuntimeError("no answer")

    async def breaks(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise RuntimeError("half an answer")

    async def hangs(self, scope, receive, send):
        self.site.running += 1
        try:
            await seen.put.aio("began", partition="hangs")
            await receive()
            await seen.put.aio((await receive())["type"], partition="hangs")
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await seen.put.aio("cancelled", partition="hangs")
            raise
        finally:
            self.site.running -= 1

    async def slow(self, scope, receive, send):
        await asyncio.sleep(float(scope["query_string"] or b"1"))
        await self.reply(send, b"late")

    async def meet(self, scope, receive, send):
        """Answers when as many as asked for are here at a time."""
        self.site.running += 1
        self.site.peak = max(self.site.peak, self.site.running)
        until = time.monotonic() + 30
        while self.site.peak < int(scope["query_string"]) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.site.running -= 1
        await self.reply(send, str(self.site.peak).encode())

    async def ws(self, scope, receive, send):
        assert (await receive())["type"] == "websocket.connect"
        offered = scope["subprotocols"]
        if "refused" in offered:
            await send({"type": "websocket.close", "code": 4003})
            return
        if "broken" in offered:
            raise RuntimeError("no handshake")
        accept = {"type": "websocket.accept", "headers": [(b"x-greeting", b"hi")]}
        await send(accept | ({"subprotocol": "second"} if "second" in offered else {}))
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                await seen.put.aio(["left", message.get("code")], partition="ws")
                return
            if message.get("text") == "close":
                await send({"type": "websocket.close", "code": 4001, "reason": "as you say"})
                return
            if message.get("text") == "fail":
                raise RuntimeError("midway")
            if message.get("text") is not None:
                await send({"type": "websocket.send", "text": message["text"].upper()})
            else:
                await send({"type": "websocket.send", "bytes": message["bytes"][::-1]})


@app.function(image=image)
@modal.concurrent(max_inputs=10)
@modal.web_server(int(PORTS["SERVER_PORT"]))
def program():
    start("0.0.0.0", os.environ["SERVER_PORT"])


@app.function(image=image)
@modal.web_server(int(PORTS["LOCAL_PORT"]), startup_timeout=1)
def unreachable():
    start("127.0.0.1", os.environ["LOCAL_PORT"])


@app.function(image=image)
@modal.web_server(int(PORTS["BUSY_PORT"]))
def busy():
    start("0.0.0.0", os.environ["BUSY_PORT"])


@app.server(image=image, port=int(PORTS["PROXIED_PORT"]), startup_timeout=20)
class Proxied:
    @modal.enter()
    def load(self):
        start("0.0.0.0", os.environ["PROXIED_PORT"])
