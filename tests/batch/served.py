"""The servers and the function that `test_targets` maps over, deployed on an engine."""

import modal

import gpuserve

app = modal.App("served")
image = gpuserve.ImageSpec.debian()


@app.function(image=gpuserve.modal_image(image))
def sizes(batch):
    return [len(text) for text in batch]


@gpuserve.register(app)
class One(gpuserve.WarmModelServer):
    image = image

    def load(self) -> None:
        self.more = 100

    @gpuserve.batched
    def size(self, batch: list[str]) -> list[int]:
        return [len(text) + self.more for text in batch]


@gpuserve.register(app)
class Two(gpuserve.WarmModelServer):
    image = image

    @gpuserve.batched
    def size(self, batch: list[str]) -> list[int]:
        return [len(text) + 200 for text in batch]

    @gpuserve.batched
    def negative(self, batch: list[str]) -> list[int]:
        return [-len(text) for text in batch]
