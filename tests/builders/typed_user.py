"""A user's file, as `nox -s types` reads it: what stands here is checked by mypy alone, strictly, and never run."""

from collections.abc import Sequence
from typing import assert_type

import modal

import gpuserve

app = modal.App("typed")


@gpuserve.register(app)
class Lengths(gpuserve.WarmModelServer):
    """One method, from items to answers."""

    image = gpuserve.ImageSpec.debian("3.11")

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[int]:
        """Their lengths."""
        return [len(text) for text in batch]


server = Lengths()
assert_type(server.predict.remote("a"), int)
assert_type(list(server.predict.map(["a"], chunk=8)), list[int])
assert_type(server.predict.local(["a"]), Sequence[int])
with Lengths.local() as here:
    assert_type(here, Lengths)
server.predict.remote(3)  # type: ignore[arg-type] # a wrong item is an error: an ignore that is not needed is one, too

# what is read and where answers go, as it is written everywhere: the path first
gpuserve.Jsonl("docs/*.jsonl", id_field="id", input_field="text", encoding="latin-1")
gpuserve.Csv(["a.csv", "b.csv"], delimiter=";")
gpuserve.Parquet("docs.parquet", id_field="url")
gpuserve.HfDataset("imdb", split="train", input_field="text")
gpuserve.Items(lambda: iter("ab"), name="letters")
gpuserve.Shards("embeddings", format="parquet", volume="results")
gpuserve.Jsonl("docs.jsonl", encodin="latin-1")  # type: ignore[call-arg] # no field of that name
