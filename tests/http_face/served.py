"""The server that the tests of the HTTP face call: one typed method, one that streams, and routes of its own."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

import gpuserve

LIMIT = 4096


class Settings(BaseModel):
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=LIMIT)] = 16
    n: Annotated[int, Field(ge=1, le=8)] = 1


class Prompt(BaseModel):
    prompt: Annotated[str, Field(max_length=10_000)]
    settings: Settings = Settings()


class Own(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    number: float
    tags: Annotated[list[Annotated[str, Field(max_length=50)]], Field(max_length=10)] = []


class Echo(gpuserve.WarmModelServer):
    """Answers a text with itself; some texts have it misbehave."""

    batching = gpuserve.Batching(max_batch_size=8, max_queue=64)

    def load(self) -> None:
        self.held, self.let_go = threading.Event(), threading.Event()
        self.seen: list[str] = []

    def cost(self, item: Prompt) -> float:
        return float(len(item.prompt))

    @gpuserve.batched
    def predict(self, batch: list[Prompt]) -> list[dict[str, str | float | int]]:
        self.seen += [item.prompt for item in batch]
        for item in batch:
            if item.prompt == "hold":
                self.held.set()
                self.let_go.wait(30)
            if item.prompt == "boom":
                raise RuntimeError("secret internals of /root/model")
        return [
            {"text": item.prompt, "temperature": item.settings.temperature, "max_tokens": item.settings.max_tokens}
            for item in batch
        ]

    @gpuserve.streaming
    def letters(self, item: Prompt) -> gpuserve.streaming:
        yield from item.prompt

    def routes(self, router: APIRouter) -> None:
        @router.post("/own")
        async def own(body: Own) -> dict[str, float]:
            return {"number": body.number}

        @router.get("/own/{number}")
        async def numbered(number: Annotated[int, Field(ge=0, le=9)]) -> dict[str, int]:
            return {"number": number}


class Held(Echo):
    """The same, with its only instance at hand: what it saw is what the test asks about."""

    instance: Held

    def load(self) -> None:
        super().load()
        type(self).instance = self
