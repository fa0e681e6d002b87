"""Adapters: named by requests, loaded once, kept within a bound, and one a batch."""

from typing import ClassVar

import pytest
from pydantic import BaseModel

import gpuserve


class Ask(BaseModel):
    text: str
    adapter: str | None = None


class Styled(gpuserve.WarmModelServer):
    """A model whose adapters are words that it puts before a text."""

    batching = gpuserve.Batching(max_batch_size=8)

    def load(self):
        self.words, self.now, self.events, self.batches = {}, None, [], []

    def load_adapter(self, name, path):
        self.words[name] = (path / "adapter_config.json").read_text()
        self.events.append(f"load {name}")

    def use_adapter(self, name):
        assert name is None or name in self.words
        self.now = name

    def unload_adapter(self, name):
        del self.words[name]
        self.events.append(f"unload {name}")

    @gpuserve.batched
    def style(self, batch: list[Ask]) -> list[str]:
        self.batches.append([ask.adapter for ask in batch])
        if any(ask.text == "poison" for ask in batch):
            raise ValueError("poison")
        return [f"{self.words.get(self.now, 'plain')} {ask.text}" for ask in batch]

    @gpuserve.streaming
    def spell(self, item: Ask):
        for letter in item.text:
            yield f"{self.now}-{letter}"


@pytest.fixture
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUSERVE_HOME", str(tmp_path / "home"))
    found = {}
    for name in ("formal", "terse", "warm"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(f'"{name}!"')
        found[name] = gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(folder), volume="adapters")
        found[name].fetch()
    return found


def test_each_batch_runs_with_one_adapter_and_answers_come_in_order(caches):
    class Server(Styled):
        adapters: ClassVar = caches

    asks = [Ask(text=str(n), adapter=(None, "formal", "terse")[n % 3]) for n in range(30)]
    with Server.local() as server:
        answers = list(server.style.map(asks, chunk=30))
        words = {None: "plain", "formal": '"formal!"', "terse": '"terse!"'}
        assert answers == [f"{words[ask.adapter]} {ask.text}" for ask in asks]
        assert all(len(set(batch)) == 1 for batch in server.batches)
        assert max(len(batch) for batch in server.batches) == 8
        assert sorted(server.events) == ["load formal", "load terse"]


def test_an_unknown_adapter_is_refused_with_those_that_there_are(caches):
    class Server(Styled):
        adapters: ClassVar = caches

    with Server.local() as server:
        for call in (
            lambda: server.style.remote(Ask(text="a", adapter="loud")),
            lambda: list(server.style.map([Ask(text="a"), Ask(text="a", adapter="loud")])),
            lambda: list(server.spell.remote_gen(Ask(text="a", adapter="loud"))),
        ):
            with pytest.raises(gpuserve.RequestError, match="'loud'; there are: formal, terse, warm") as refused:
                call()
            assert (refused.value.code, refused.value.status) == ("unknown_adapter", 404)
        assert server.batches == []


def test_the_least_recently_used_adapter_makes_room(caches):
    class Server(Styled):
        adapters: ClassVar = caches
        max_loaded_adapters = 2

    with Server.local() as server:
        for name in ("formal", "terse", "formal", "warm", "formal", "terse"):
            server.style.remote(Ask(text="a", adapter=name))
        assert server.events == [
            "load formal", "load terse", "unload terse", "load warm", "unload warm", "load terse",
        ]  # fmt: skip


def test_a_stream_keeps_its_adapter_while_others_run_between_its_pieces(caches):
    class Server(Styled):
        adapters: ClassVar = caches
        max_loaded_adapters = 1

    with Server.local() as server:
        pieces = server.spell.remote_gen(Ask(text="abc", adapter="formal"))
        assert next(pieces) == "formal-a"
        assert server.style.remote(Ask(text="x", adapter="terse")) == '"terse!" x'
        assert list(pieces) == ["formal-b", "formal-c"]


def test_a_poisoned_item_hurts_nobody_elses_adapter(caches):
    class Server(Styled):
        adapters: ClassVar = caches

    with Server.local() as server:
        with pytest.raises(ValueError, match="poison"):
            server.style.remote(Ask(text="poison", adapter="formal"))
        assert server.style.remote(Ask(text="a", adapter="formal")) == '"formal!" a'


def test_mixed_batches_hold_no_more_adapters_than_stay_loaded(caches):
    class Server(Styled):
        adapters: ClassVar = caches
        max_loaded_adapters = 2
        mixed_adapters = True

        @gpuserve.batched
        def style(self, batch: list[Ask]) -> list[str]:
            self.batches.append([ask.adapter for ask in batch])
            return [f"{self.words[ask.adapter] if ask.adapter else 'plain'} {ask.text}" for ask in batch]

    asks = [Ask(text=str(n), adapter=("formal", "terse", "warm", None)[n % 4]) for n in range(8)]
    with Server.local() as server:
        answers = list(server.style.map(asks, chunk=8))
        assert answers == [f'"{ask.adapter}!" {ask.text}' if ask.adapter else f"plain {ask.text}" for ask in asks]
        assert all(len({name for name in batch if name}) <= 2 for batch in server.batches)
        assert any(len(set(batch)) > 1 for batch in server.batches)


def test_an_adapter_that_was_never_fetched_says_how_to_fetch(caches, tmp_path):
    class Server(Styled):
        adapters: ClassVar = {
            "new": gpuserve.VolumeWeightsCache(source=gpuserve.FolderSource(tmp_path / "new"), volume="adapters")
        }

    with Server.local() as server:
        with pytest.raises(gpuserve.WeightsNotFoundError, match="gpuserve weights fetch"):
            server.style.remote(Ask(text="a", adapter="new"))
        assert server.style.remote(Ask(text="a")) == "plain a"


def test_mixed_adapters_without_adapters_are_refused():
    with pytest.raises(gpuserve.DeclarationError, match="there are no adapters"):

        class Server(Styled):
            mixed_adapters = True
