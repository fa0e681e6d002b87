"""A WarmModelServer in its containers: loaded once, batched, over RPC and HTTP, and in this process."""

import json
import urllib.error
import urllib.request

import pytest

import gpuserve

KEY = "0123456789abcdef0123456789"


class Tens(gpuserve.WarmModelServer):
    batching = gpuserve.Batching(max_batch_size=4)

    def load(self) -> None:
        self.events = ["load"]

    def to_device(self) -> None:
        self.events.append("to_device")

    def warm_up(self) -> None:
        self.events.append("warm_up")

    def unload(self) -> None:
        self.events.append("unload")

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        self.events.append(len(batch))
        return [10 * number for number in batch]


def test_a_server_in_this_process_keeps_the_order_of_its_hooks():
    with Tens.local() as server:
        assert server.predict.remote(4) == 40
        assert list(server.predict.map(range(6))) == [0, 10, 20, 30, 40, 50]
        assert list(server.predict.map(range(6), chunk=3)) == [0, 10, 20, 30, 40, 50]
        assert server.predict.local([1, 2]) == [10, 20]
        with pytest.raises(gpuserve.RequestError, match="valid integer; got str") as refused:
            server.predict.remote("four")
    assert (refused.value.code, refused.value.status) == ("invalid_input", 422)
    assert server.events == ["load", "to_device", "warm_up", 1, 4, 2, 3, 3, 2, "unload"]


def test_a_server_that_is_not_started_says_how_to_start_it():
    with pytest.raises(gpuserve.EngineError, match=r"Tens\.local\(\)"):
        Tens().predict.remote(1)


APP = """
    import os
    import modal, gpuserve
    from pydantic import BaseModel

    app = modal.App("builders")
    seen = modal.Queue.from_name("seen", create_if_missing=True)

    class Order(BaseModel):
        item: str
        count: int

    class Base(gpuserve.WarmModelServer):
        image = gpuserve.ImageSpec.debian().env(COLOUR="blue")
        batching = gpuserve.Batching(max_batch_size=8)

        def load(self):
            self.loads = getattr(self, "loads", 0) + 1

        @gpuserve.batched
        def price(self, batch: list[Order]) -> list[int]:
            if any(order.item == "poison" for order in batch):
                raise ValueError("poison")
            return [3 * order.count for order in batch]

    @gpuserve.register(app)
    class Shop(Base):
        sign: str = modal.parameter(default="open")
        scaling = gpuserve.Scaling(max_containers=1)
        max_parameter_sets = 2

        def unload(self):
            seen.put("unloaded")

        @modal.method()
        def about(self):
            return [self.loads, self.sign, os.environ["COLOUR"]]

    @app.local_entrypoint()
    def main():
        shop = Shop()
        orders = [Order(item="apple", count=n) for n in range(50)]
        found = {
            "one": shop.price.remote(orders[7]),
            "map": list(shop.price.map(orders, chunk=20)),
            "about": shop.about.remote(),
            "parameter": Shop(sign="shut").about.remote(),
        }
        try: shop.price.remote(Order(item="poison", count=1))
        except ValueError as error: found["poison"] = str(error)
        try: shop.price.remote({"item": "apple", "count": "many"})
        except gpuserve.RequestError as error: found["invalid"] = error.code
        report(found)
"""


def test_a_registered_server_loads_once_and_answers_in_batches(run_app):
    assert run_app(APP) == {
        "one": 21,
        "map": [3 * n for n in range(50)],
        "about": [1, "open", "blue"],
        "parameter": [1, "shut", "blue"],
        "poison": "poison",
        "invalid": "invalid_input",
    }


HTTP_APP = """
import modal, gpuserve

app = modal.App("http-builder")

@gpuserve.register(app)
class Echo(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="http-keys"), public_paths=("/page",), max_body_bytes=1000)

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        if "boom" in batch:
            raise RuntimeError("secret internals")
        return [text.upper() for text in batch]

    def routes(self, router):
        @router.get("/page")
        async def page():
            return {"page": True}

        @router.post("/twice")
        async def twice(text: str):
            return {"output": await self.predict.submit(text) * 2}
"""


def ask(url, path, body=None, key=KEY, **headers):
    request = urllib.request.Request(url + path, data=body, headers=dict(headers))
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def test_the_http_face_is_guarded_and_answers_in_one_shape(engine, modal_cli, tmp_path):
    modal_cli("secret", "create", "http-keys", f"GPUSERVE_API_KEYS=ci:{KEY}")
    (tmp_path / "http_app.py").write_text(HTTP_APP)
    modal_cli("deploy", "http_app.py")
    import modal

    with engine.connected():
        url = modal.Cls.from_name("http-builder", "Echo")().web.get_web_url()
    assert ask(url, "/health", key=None)[:2] == (200, {"status": "ok"})
    assert ask(url, "/ready", key=None)[:2] == (200, {"ready": True})
    assert ask(url, "/page", key=None)[:2] == (200, {"page": True})
    assert ask(url, "/predict", b'{"input": "abc"}')[:2] == (200, {"output": "ABC"})
    assert ask(url, "/twice?text=ab", b"")[:2] == (200, {"output": "ABAB"})
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        figures = answer.read().decode()
    assert 'gpuserve_requests_total{route="/predict",status="200"} 1.0' in figures
    assert 'gpuserve_batch_size_count{method="predict"} 2.0' in figures
    assert 'gpuserve_queue_length{method="predict"} 0.0' in figures
    assert 'gpuserve_start_seconds{part="load"}' in figures
    for key in (None, "wrong", KEY[:-1], KEY + "x"):
        for path in ("/predict", "/openapi.json", "/metrics", "/nowhere", "/page/", "//page"):
            status, body, headers = ask(url, path, b'{"input": "a"}' if path == "/predict" else None, key=key)
            assert (status, body["error"]["code"]) == (401, "unauthorized"), (key, path)
            assert headers["www-authenticate"].startswith("Bearer")
    refusals = {
        b"": (400, "empty_body"),
        b"{": (400, "invalid_json"),
        b'{"input": NaN}': (400, "invalid_number"),
        b'{"input": 1e999}': (400, "invalid_number"),
        b'{"input": "a", "input": "b"}': (400, "duplicate_key"),
        b'{"input": "\\ud800"}': (400, "invalid_unicode"),
        b'{"input": "\xff"}': (400, "invalid_utf8"),
        b'{"input": 3}': (422, "invalid_input"),
        b'{"input": "a", "extra": 1}': (422, "invalid_input"),
        b'{"input": "' + b"a" * 2000 + b'"}': (413, "body_too_large"),
        b"[" * 300 + b"]" * 300: (400, "too_deep"),
        b'{"input": "boom"}': (500, "internal_error"),
    }
    for body, expected in refusals.items():
        status, answer, _ = ask(url, "/predict", body)
        assert (status, answer["error"]["code"]) == expected, body[:40]
        assert "secret internals" not in json.dumps(answer)
    status, answer, _ = ask(url, "/nowhere")
    assert (status, answer["error"]["code"]) == (404, "not_found")


def test_a_server_without_keys_does_not_start(engine, modal_cli, tmp_path):
    source = HTTP_APP.replace("http-builder", "keyless").replace("http-keys", "no-keys")
    (tmp_path / "keyless.py").write_text(source + "\n@app.local_entrypoint()\ndef main(): Echo().predict.remote('a')\n")
    modal_cli("secret", "create", "no-keys", "OTHER=1")
    done = modal_cli("run", "keyless.py", check=False)
    assert done.returncode != 0
    assert "GPUSERVE_API_KEYS" in done.stdout + done.stderr
