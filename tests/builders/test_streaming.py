"""Streaming methods: piece by piece over RPC and HTTP, in this process and in a container."""

from collections.abc import Iterator
from typing import Annotated

import pytest
from pydantic import Field

import gpuserve

KEY = "0123456789abcdef0123456789"


class Count(gpuserve.WarmModelServer):
    def load(self) -> None:
        self.ended: list[int] = []

    @gpuserve.streaming
    def count(self, item: Annotated[int, Field(le=1000)]) -> Iterator[int]:
        try:
            yield from range(item)
        finally:
            self.ended.append(item)

    @gpuserve.batched
    def double(self, batch: list[Annotated[int, Field(le=1000)]]) -> list[int]:
        return [2 * one for one in batch]


def test_pieces_come_one_by_one_and_leaving_closes_the_generator():
    with Count.local() as server:
        assert list(server.count.remote_gen(3)) == [0, 1, 2]
        pieces = server.count.remote_gen(9)
        assert next(pieces) == 0
        pieces.close()
        assert server.ended == [3, 9]
        assert list(server.count.local(2)) == [0, 1]


def test_the_limits_of_an_annotation_hold_for_items_and_for_members_of_a_batch():
    with Count.local() as server:
        for call in (lambda: list(server.count.remote_gen(1001)), lambda: server.double.remote(1001)):
            with pytest.raises(gpuserve.RequestError, match="less than or equal to 1000"):
                call()


def test_a_marker_on_the_wrong_kind_of_function_is_refused():
    with pytest.raises(gpuserve.DeclarationError) as wrong:

        class Mixed(gpuserve.WarmModelServer):
            @gpuserve.streaming
            def plain(self, item: int) -> int:
                return item

            @gpuserve.batched
            def yields(self, batch: list[int]) -> Iterator[int]:
                yield from batch

            @gpuserve.streaming
            async def waits(self, item: int):
                yield item

    assert [fault.split(";")[0] for fault in wrong.value.faults] == [
        "plain yields nothing",
        "yields yields",
        "waits is async",
    ]


APP = """
import asyncio, contextlib, json, urllib.error, urllib.request
import modal, gpuserve
from collections.abc import Iterator

app = modal.App("streams")
closed = modal.Queue.from_name("closed", create_if_missing=True)

@gpuserve.register(app)
class Teller(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="stream-keys"))

    @gpuserve.streaming
    def tell(self, item: str) -> Iterator[str]:
        made = 0
        try:
            for letter in item:
                if letter == "!":
                    raise RuntimeError("secret internals")
                made += 1
                yield letter
        finally:
            closed.put([item[:3], made])

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        return [text.upper() for text in batch]

def events(url, item):
    request = urllib.request.Request(f"{url}/tell", data=json.dumps({"input": item}).encode())
    request.add_header("Authorization", "Bearer KEY")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            kind, text = answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\\n\\n")]
    return [kind, [[block.get("event", "message"), json.loads(block["data"])] for block in blocks]]

@app.local_entrypoint()
def main():
    teller = Teller()
    found = {"rpc": list(teller.tell.remote_gen("abc")), "closed": closed.get(timeout=20)}
    pieces = teller.tell.remote_gen("long" * 5000)
    found["first"] = next(pieces)
    pieces.close()
    found["left"] = closed.get(timeout=20)

    async def leave():
        async with contextlib.aclosing(teller.tell.remote_gen.aio("LONG" * 5000)) as pieces:
            return await anext(pieces)

    found["first"] += asyncio.run(leave())
    found["left"] += closed.get(timeout=20)
    found["events"] = events(teller.url, "hi")
    found["broken"] = events(teller.url, "a!")
    found["refused"] = events(teller.url, 3)
    report(found)
"""


def test_a_registered_server_streams_over_rpc_and_http(modal_cli, run_app):
    modal_cli("secret", "create", "stream-keys", f"GPUSERVE_API_KEYS=ci:{KEY}")
    found = run_app(APP.replace("KEY", KEY))
    assert (found["rpc"], found["closed"]) == (["a", "b", "c"], ["abc", 3])
    text, made, by_aio, made_for_aio = found["left"]
    assert (found["first"], text, by_aio) == ("lL", "lon", "LON")
    assert max(made, made_for_aio) < 20_000, "the call goes on though nobody reads it"
    kind, said = found["events"]
    assert kind.startswith("text/event-stream")
    assert said == [["message", {"output": "h"}], ["message", {"output": "i"}], ["done", {}]]
    _kind, [first, last] = found["broken"]
    assert first == ["message", {"output": "a"}]
    assert (last[0], last[1]["error"]["code"]) == ("error", "internal_error")
    assert "secret" not in str(last)
    assert found["refused"] == 422
