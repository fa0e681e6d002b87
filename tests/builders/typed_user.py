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
