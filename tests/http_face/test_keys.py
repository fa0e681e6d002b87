"""Who may call, and how often: keys that change while the server runs, and a bucket for each of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import secrets
import time

import httpx
import modal
import pytest

from gpuserve import Http, RequestError, SecretSpec
from gpuserve.runtime.http.keys import BearerKeys, KeysError, SharedKeys, keys_of
from gpuserve.runtime.http.rate_limit import RateLimit

from .conftest import KEY, OTHER_KEY, serving
from .served import Echo

pytestmark = pytest.mark.wide


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Entries:
    """A dict of keys that can be out of reach."""

    def __init__(self, **keys: str) -> None:
        self.keys = {name: digest(key) for name, key in keys.items()}
        self.reads = 0
        self.reachable = True

    async def read(self):
        self.reads += 1
        if not self.reachable:
            raise ConnectionError("no dict")
        return dict(self.keys)


class Asked:
    """The keys of a server, asked as the guard asks, at a time that the test says."""

    def __init__(self, text: str = "", **keys: str) -> None:
        self.now = 0.0
        self.entries = Entries(**keys)
        self.keys = BearerKeys(text, shared=SharedKeys(self.entries, 60.0, clock=lambda: self.now))

    async def owner(self, key: str) -> str | None:
        await self.keys.renew()
        return self.keys.owner(f"Bearer {key}")


def test_a_key_put_into_the_dict_opens_and_one_taken_out_opens_no_longer_than_stated():
    async def main():
        asked = Asked(ci=KEY)
        assert await asked.owner(KEY) == "ci"
        asked.entries.keys = {"ops": digest(OTHER_KEY)}
        asked.now = 29.0
        assert await asked.owner(KEY) == "ci", "what was read is believed"
        assert asked.entries.reads == 1
        asked.now = 61.0
        assert await asked.owner(KEY) is None, "and not for longer than it may be"
        assert await asked.owner(OTHER_KEY) == "ops"
        assert asked.entries.reads == 2

    asyncio.run(main())


def test_keys_are_read_again_in_the_background_before_they_are_too_old():
    async def main():
        asked = Asked(ci=KEY)
        assert await asked.owner(KEY) == "ci"
        asked.entries.keys = {}
        asked.now = 31.0
        assert await asked.owner(KEY) == "ci", "nobody waits for it"
        await asyncio.sleep(0)
        assert asked.entries.reads == 2
        assert await asked.owner(KEY) is None

    asyncio.run(main())


def test_keys_that_cannot_be_read_let_nobody_in_once_they_are_too_old(capfd):
    async def main():
        asked = Asked(ci=KEY)
        assert await asked.owner(KEY) == "ci"
        asked.entries.reachable = False
        asked.now = 59.0
        assert await asked.owner(KEY) == "ci"
        asked.now = 61.0
        with pytest.raises(RequestError) as refused:
            await asked.owner(KEY)
        assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "keys_unavailable", 1)
        asked.entries.reachable = True
        assert await asked.owner(KEY) == "ci"

    asyncio.run(main())
    assert "the keys could not be read again: ConnectionError" in capfd.readouterr().err


def test_many_who_ask_at_once_are_one_look_at_the_dict():
    async def main():
        asked = Asked(ci=KEY)
        assert await asyncio.gather(*(asked.owner(KEY) for _ in range(100))) == ["ci"] * 100
        assert asked.entries.reads == 1

    asyncio.run(main())


def test_a_key_that_was_stored_in_clear_opens_nothing_and_is_not_repeated(capfd):
    async def main():
        asked = Asked()
        asked.entries.keys = {"clear": KEY, "number": 7, "good": digest(OTHER_KEY)}
        assert await asked.owner(KEY) is None
        assert await asked.owner(OTHER_KEY) == "good"

    asyncio.run(main())
    log = capfd.readouterr().err
    assert "the key 'clear' is not used: store hashlib.sha256(key.encode()).hexdigest()" in log
    assert KEY not in log


def test_ten_thousand_keys_that_begin_alike_keep_their_own_names():
    start = secrets.token_hex(30)
    keys = BearerKeys(",".join(f"n{number}:{start}{number:05}" for number in range(200)))
    assert all(keys.owner(f"Bearer {start}{number:05}") == f"n{number}" for number in range(200))
    assert not any(keys.owner(f"Bearer {start}{number:05}") for number in range(200, 10_000, 7))
    assert start not in repr(keys)


def test_without_keys_a_server_starts_only_where_modal_asks_for_a_token_of_its_own():
    for http in (
        Http(),
        Http(keys=SecretSpec(name="keys")),
        Http(keys=SecretSpec(name="keys"), requires_proxy_auth=True),
    ):
        with pytest.raises(KeysError, match="GPUSERVE_API_KEYS is not set"):
            keys_of(http, {})
    assert keys_of(Http(requires_proxy_auth=True), {}) is None
    both = keys_of(Http(requires_proxy_auth=True), {"GPUSERVE_API_KEYS": f"ci:{KEY}"})
    assert both is not None
    assert both.owner(f"Bearer {KEY}") == "ci"


def test_a_bucket_fills_evenly_and_holds_no_more_than_a_burst():
    limit = RateLimit(requests_per_minute=120, burst=3)
    assert [limit.wait_s("ci", 0.0) for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]
    assert limit.wait_s("ops", 0.0) == 0, "each key has its own"
    assert limit.wait_s("ci", 0.25) == pytest.approx(0.25)
    assert limit.wait_s("ci", 0.5) == 0
    assert [limit.wait_s("ci", 1000.0) for _ in range(4)][:3] == [0, 0, 0]
    taken = sum(limit.wait_s("steady", second / 100) == 0 for second in range(6000))
    assert taken == pytest.approx(120 + 3, abs=1)


def test_who_calls_too_often_is_told_what_is_allowed_and_when_to_come_back():
    pytest.importorskip("gpuserve.runtime.http.serve")
    with serving(Echo, Http(requests_per_minute=6, burst=2)) as served:
        assert [served.predict({"prompt": "a"}).status for _ in range(2)] == [200, 200]
        refused = served.predict({"prompt": "a"})
        assert refused.fault == (429, "rate_limited")
        assert refused.error["message"] == "the key 'ci' may send 6 requests a minute, 2 at once; try again later"
        assert refused.headers["retry-after"] == "10"
        assert served.predict({"prompt": "a"}, key=OTHER_KEY).status == 200
        assert served.ask("/health", key=None).status == 200
        assert served.predict({"prompt": "a"}, key=KEY + "x").status == 401


APP = """
import hashlib
import modal, gpuserve

app = modal.App("shared-keys")
keys = modal.Dict.from_name("door", create_if_missing=True)

class Echo_(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        return batch

@gpuserve.register(app)
class Echo(Echo_):
    http = gpuserve.Http(keys_dict="door", keys_max_age_s=1)

@gpuserve.register(app)
class Locked(Echo_):
    http = gpuserve.Http(requires_proxy_auth=True)

@app.local_entrypoint()
def main():
    import httpx, os, time
    url, locked = Echo().web.get_web_url(), Locked().web.get_web_url()
    def call(url, **headers):
        return httpx.post(f"{url}/predict", json={"input": "a"}, headers=headers, timeout=60)
    def ask(key):
        return call(url, Authorization=f"Bearer {key}").status_code
    def until(key, status):
        begun = time.monotonic()
        while ask(key) != status:
            assert time.monotonic() - begun < 20
        return time.monotonic() - begun
    keys["ci"] = hashlib.sha256(b"a-key-of-some-length").hexdigest()
    found = {"wrong": ask("another-key-of-length"), "right": until("a-key-of-some-length", 200)}
    keys.pop("ci")
    found["closed"] = until("a-key-of-some-length", 401)
    token = json.loads(os.environ["PROXY_TOKEN"])
    lock = {name: token[name] for name in ("Modal-Key", "Modal-Secret")}
    found["locked"] = [call(locked).text, call(locked, **lock).json()]
    report(found)
"""


def test_keys_of_a_dict_open_and_close_a_running_server_and_modals_own_lock_stands_alone(
    run_app, modal_cli, monkeypatch
):
    token = modal_cli("workspace", "proxy-tokens", "create", "--json").stdout
    monkeypatch.setenv("PROXY_TOKEN", token)
    found = run_app(APP)

    assert found["wrong"] == 401
    assert found["right"] < 5
    assert found["closed"] < 5
    assert found["locked"] == ["modal-http: missing credentials for proxy authorization", {"output": "a"}]


ROTATED = """
import os
import modal, gpuserve

app = modal.App("rotated")
told = modal.Queue.from_name("told", create_if_missing=True)

@gpuserve.register(app)
class Door(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="door-keys"))
    scaling = gpuserve.Scaling(max_containers=2)
    batching = gpuserve.Batching(max_batch_size=1, max_queue=1)

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        return [os.environ["MODAL_TASK_ID"] for _ in batch]

    def routes(self, router):
        @router.get("/held")
        async def held():
            await told.put.aio("begun")
            await told.get.aio(partition="go on", timeout=50)
            return {"output": os.environ["MODAL_TASK_ID"]}
"""


def test_keys_of_a_secret_are_changed_by_containers_that_start_after_it_while_older_ones_keep_theirs(
    engine, modal_cli, tmp_path
):
    def store(key: str) -> None:
        modal_cli("secret", "create", "--force", "door-keys", f"GPUSERVE_API_KEYS=ci:{key}")

    (tmp_path / "rotated.py").write_text(ROTATED)
    store(KEY)
    modal_cli("deploy", "rotated.py")
    with engine.connected(), concurrent.futures.ThreadPoolExecutor(2) as beside:
        told = modal.Queue.from_name("told", create_if_missing=True)
        url = modal.Cls.from_name("rotated", "Door")().web.get_web_url()

        def ask(key: str, path: str = "/predict") -> tuple[int, str]:
            """The status, and the container that answered or the reason that none did."""
            method, body = ("GET", None) if path == "/held" else ("POST", {"input": "a"})
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.request(method, url + path, json=body, headers=headers, timeout=60)
            return answer.status_code, answer.json().get("output") or answer.json()["error"]["code"]

        refused = (401, "unauthorized")
        status, old = ask(KEY)
        assert status == 200
        assert ask(OTHER_KEY) == refused

        store(OTHER_KEY)
        assert ask(KEY) == (200, old), "a container that runs has the keys that it began with"
        assert ask(OTHER_KEY) == refused

        # A batch that runs and one that waits keep a container busy: what comes next has another one started.
        held = [beside.submit(ask, KEY, "/held") for _ in range(2)]
        assert [told.get(timeout=30) for _ in held] == ["begun"] * 2
        until = time.monotonic() + 40
        while (answer := ask(OTHER_KEY)) == refused:  # until it has started, the busy one takes more than it should
            assert time.monotonic() < until, "no container knows the new key"
        status, new = answer
        assert status == 200
        assert new != old
        assert ask(KEY) in {refused, (200, old)}, "a container that started after the change does not know the old key"
        told.put_many(["go on"] * 2, partition="go on")
        assert [one.result(30) for one in held] == [(200, old)] * 2, "what was let in is answered"

        modal_cli("container", "stop", old, "--yes")
        assert ask(OTHER_KEY) == (200, new)
        assert ask(KEY) == refused, "with the last container that knew it, the old key is gone"
