import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from gpuserve.engine import LocalEngine

WEB = """
import modal
app = modal.App("web")
image = modal.Image.debian_slim().pip_install("fastapi")

@app.function(image=image)
@modal.fastapi_endpoint(method="POST")
def double(item: dict): return {"x": item["x"] * 2}

@app.cls(image=image)
class Site:
    @modal.enter()
    def load(self): self.n = 0

    @modal.method()
    def count(self): return self.n

    @modal.asgi_app()
    def web(self):
        from fastapi import FastAPI
        from fastapi.responses import StreamingResponse
        web = FastAPI()

        @web.get("/hits")
        async def hits():
            self.n += 1
            return {"hits": self.n}

        @web.post("/size")
        async def size(request: __import__("fastapi").Request):
            return {"size": len(await request.body())}

        @web.get("/stream")
        async def stream():
            async def parts():
                for i in range(3): yield f"data: {i}\\n\\n"
            return StreamingResponse(parts(), media_type="text/event-stream")

        return web
"""

CLIENT = """
import json, modal
f = modal.Function.from_name("web", "double")
s = modal.Cls.from_name("web", "Site")()
print(json.dumps({"double": f.get_web_url(), "site": s.web.get_web_url(), "count": s.count.remote()}))
"""


def _python(engine: LocalEngine, source: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, **engine.environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def _fetch(url: str, data: bytes | None = None, headers: dict | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=30) as reply:
        return reply.read()


def test_a_deployed_app_answers_http_and_survives_a_restart_of_the_engine(tmp_path: Path):
    (tmp_path / "web.py").write_text(WEB)
    home = tmp_path / "home"
    for start in range(2):
        with LocalEngine(home, image_check="warn") as engine:
            if start == 0:
                done = subprocess.run(
                    [sys.executable, "-m", "modal", "deploy", str(tmp_path / "web.py")],
                    env={**os.environ, **engine.environment},
                    capture_output=True,
                    timeout=60,
                    check=False,
                )
                assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
            urls = _python(engine, CLIENT)
            body = _fetch(urls["double"], b'{"x": 21}', {"Content-Type": "application/json"})
            hits = [json.loads(_fetch(urls["site"] + "/hits"))["hits"] for _ in range(2)]
            size = json.loads(_fetch(urls["site"] + "/size", b"x" * 3_000_000))["size"]
            stream = _fetch(urls["site"] + "/stream")
            try:
                _fetch(urls["site"] + "/hits", headers={"Host": "evil.example"})
                refused = 0
            except urllib.error.HTTPError as error:
                refused = error.code

            assert json.loads(body) == {"x": 42}
            assert hits == [1, 2]
            assert size == 3_000_000
            assert stream == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
            assert refused == 421
            assert [app["name"] for app in engine.status()["apps"]] == ["web"]


def test_apps_are_listed_logged_and_stopped(modal_cli, tmp_path: Path):
    (tmp_path / "plain.py").write_text(
        'import modal\napp = modal.App("plain")\n@app.function()\ndef f(): print("a line")\n'
    )
    modal_cli("deploy", "plain.py")
    listed = json.loads(modal_cli("app", "list", "--json").stdout)
    modal_cli("app", "stop", "plain", "--yes")
    after = modal_cli("app", "list", "--json").stdout

    assert any("plain" in str(line) and "deployed" in str(line) for line in listed)
    assert "deployed" not in after


def test_a_syntax_error_and_a_missing_secret_are_named(modal_cli, tmp_path: Path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "secretless.py").write_text(
        "import modal\napp = modal.App('s')\n"
        "@app.function(secrets=[modal.Secret.from_name('nowhere')])\ndef f(): pass\n"
    )
    broken = modal_cli("run", "broken.py", check=False)
    secretless = modal_cli("run", "secretless.py::f", check=False)

    assert broken.returncode != 0
    assert "SyntaxError" in broken.stdout + broken.stderr
    assert secretless.returncode != 0
    assert "nowhere" in secretless.stdout + secretless.stderr
