import json
import os
import subprocess
import sys
import time
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

born = modal.Queue.from_name("born", create_if_missing=True)

@app.cls(min_containers=1, scaledown_window=2)
class Warm:
    @modal.enter()
    def load(self): born.put("warm")
    @modal.method()
    def call(self): return 1
"""

CLIENT = """
import json, modal
warm = modal.Queue.from_name("born", create_if_missing=True).get(timeout=20)  # before any call
f = modal.Function.from_name("web", "double")
s = modal.Cls.from_name("web", "Site")()
print(json.dumps({"double": f.get_web_url(), "site": s.web.get_web_url(), "count": s.count.remote(), "warm": warm}))
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
    return json.loads(done.stdout.splitlines()[-1])


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

            assert urls["warm"] == "warm"
            assert json.loads(body) == {"x": 42}
            assert hits == [1, 2]
            assert size == 3_000_000
            assert stream == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
            assert refused == 421
            assert [app["name"] for app in engine.status()["apps"]] == ["web"]


WORKER = """
import modal, os, time
app = modal.App("worker")
heard = modal.Queue.from_name("heard", create_if_missing=True)
go = modal.Queue.from_name("go", create_if_missing=True)

@app.cls(max_containers=1)
class Worker:
    @modal.method()
    def work(self, x):
        if x: return x
        me = modal.current_function_call_id()
        heard.put(me)
        return go.get(partition=me, timeout=60)
    @modal.exit()
    def leave(self): heard.put("left", partition="left")

@app.local_entrypoint()
def main(how: str):
    if how == "spawn": Worker().work.spawn(0)
    else: Worker().work.remote(0 if how == "remote" else 1)
"""


def test_a_stopped_app_ends_its_calls_runs_its_exit_hooks_and_takes_no_more(program):
    found = program(
        """
        import subprocess
        def apps():
            lines = json.loads(cli("app", "list", "--json"))
            return [[one["description"], one["state"], one["tasks"]] for one in lines]
        cli("deploy", "worker.py")
        worker = modal.Cls.from_name("worker", "Worker")().work
        heard = modal.Queue.from_name("heard", create_if_missing=True)
        running, queued = worker.spawn(0), worker.spawn(2)
        heard.get(timeout=20)
        found["listed"] = apps()
        def items():
            yield 3
            subprocess.run([sys.executable, "-m", "modal", "app", "stop", "worker", "--yes"], check=True)
            yield 4
        found["mapped"] = what(lambda: list(worker.map(items())))
        found["left"] = heard.get(partition="left", timeout=20)
        found["calls"] = [what(running.get), what(queued.get)]
        found["later"] = what(lambda: worker.remote(5))
        found["stopped"] = apps()
        found["again"] = cli("app", "stop", "worker", "--yes")
        cli("deploy", "worker.py")
        found["anew"] = modal.Cls.from_name("worker", "Worker")().work.remote(6)
        """,
        worker=WORKER,
    )
    assert found["listed"] == [["worker", "deployed", "1"]]
    assert found["left"] == "left"
    assert found["calls"] == ["the app was stopped"] * 2
    assert "stopped" in found["mapped"]
    assert "stopped" in found["later"]
    assert found["stopped"] == [["worker", "stopped", "0"]]
    assert "App is already stopped" in found["again"]
    assert found["anew"] == 6


def test_a_detached_app_goes_on_without_its_client_until_its_calls_are_done(program):
    found = program(
        """
        import os, time
        os.environ["MODAL_LOGS_TIMEOUT"] = "0.2"
        def state(name):
            lines = json.loads(cli("app", "list", "--json"))
            return [one["state"] for one in lines if one["description"] == name]
        heard, go = (modal.Queue.from_name(name, create_if_missing=True) for name in ("heard", "go"))
        cli("run", "--detach", "--name", "lonely", "worker.py", "--how", "spawn")
        call_id = heard.get(timeout=20)
        found["state"] = state("lonely")
        go.put("done", partition=call_id)
        found["value"] = modal.FunctionCall.from_id(call_id).get(timeout=20)
        found["left"] = heard.get(partition="left", timeout=20)
        while state("lonely") != ["stopped"]: time.sleep(0.05)
        cli("run", "--detach", "--name", "idle", "worker.py", "--how", "nothing")
        while state("idle") != ["stopped"]: time.sleep(0.05)
        """,
        worker=WORKER,
    )
    assert found == {"state": ["ephemeral (detached)"], "value": "done", "left": "left"}


def test_the_app_of_a_client_that_was_killed_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("gpuserve.engine.core._SILENT_CLIENT_S", 3.0)
    (tmp_path / "worker.py").write_text(WORKER)
    heard = (
        "import modal; modal.Queue.from_name('heard', create_if_missing=True).get(partition={}, timeout=30); print(1)"
    )
    with LocalEngine() as engine:
        command = [sys.executable, "-m", "modal", "run", str(tmp_path / "worker.py"), "--how", "remote"]
        client = subprocess.Popen(
            command, env={**os.environ, **engine.environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _python(engine, heard.format("None"))
        finally:
            client.kill()
            client.wait()
        _python(engine, heard.format("'left'"))
        deadline = time.monotonic() + 20
        while engine.status()["apps"]:
            assert time.monotonic() < deadline
        assert engine.status()["containers"] == 0


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
