"""An adapter is named by a field of the input, over HTTP as by RPC."""

from __future__ import annotations

import json
from typing import ClassVar

import httpx
import pytest
from pydantic import BaseModel

import gpuserve

from .conftest import KEY, serving


class Ask(BaseModel):
    text: str
    adapter: str | None = None


class Styled(gpuserve.WarmModelServer):
    """A model whose adapters are words that it puts before a text."""

    batching = gpuserve.Batching(max_batch_size=8)

    def load(self):
        self.words, self.now = {None: "plain"}, None

    def load_adapter(self, name, path):
        self.words[name] = json.loads((path / "adapter_config.json").read_text())

    def use_adapter(self, name):
        self.now = name

    @gpuserve.batched
    def predict(self, batch: list[Ask]) -> list[str]:
        return [f"{self.words[self.now]} {ask.text}" for ask in batch]

    @gpuserve.streaming
    def stream(self, item: Ask) -> gpuserve.streaming:
        yield from (self.words[self.now], item.text)


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSERVE_HOME", str(tmp_path / "home"))
    caches = {}
    for name in ("formal", "terse"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(f'"{name}!"')
        caches[name] = gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(folder), volume="adapters")
        caches[name].fetch()

    class Server(Styled):
        adapters: ClassVar = caches

    with serving(Server, gpuserve.Http()) as running:
        yield running


def test_a_request_is_answered_by_the_adapter_that_it_names(served):
    for name, word in ((None, "plain"), ("formal", "formal!"), ("terse", "terse!"), ("formal", "formal!")):
        answer = served.predict({"text": "a", "adapter": name})
        assert (answer.status, json.loads(answer.body)["output"]) == (200, f"{word} a")
    assert json.loads(served.predict({"text": "a"}).body)["output"] == "plain a"


@pytest.mark.parametrize("path", ["/predict", "/stream", "/predict/stream"])
def test_an_unknown_adapter_is_not_found_and_those_that_there_are_are_named(served, path):
    answer = served.ask(path, json.dumps({"input": {"text": "a", "adapter": "loud"}}).encode())
    assert answer.fault == (404, "unknown_adapter")
    assert "formal, terse" in answer.error["message"]
    assert served.predict({"text": "a", "adapter": "terse"}).status == 200


@pytest.mark.parametrize("path", ["/stream", "/predict/stream"])
def test_a_stream_is_told_by_its_adapter(served, path):
    body = {"input": {"text": "a", "adapter": "terse"}}
    answer = httpx.post(served.url + path, json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'data: {"output":"terse!"}\n\ndata: {"output":"a"}\n\nevent: done\ndata: {}\n\n'
