"""The same two servers as apps on the local engine, each with both transports."""

from __future__ import annotations

import os

import modal

import gpuserve
from benchmarks.serving.models import Embed, Noop

__all__ = ["app"]

app = modal.App("serving")
BASE: type[gpuserve.WarmModelServer] = Noop if os.environ["BENCH_CASE"] == "noop" else Embed
# The container imports this file again, and must find the same.
ENV = {**BASE.env, **{name: os.environ[name] for name in ("BENCH_CASE", "BENCH_PORT")}}
KEYS = gpuserve.SecretSpec(name="bench-keys")
MOST = 1_000_000


@gpuserve.register(app)
class Served(BASE):  # type: ignore[misc,valid-type]
    """Behind its own port."""

    env = ENV
    http = gpuserve.Http(
        keys=KEYS, transport="server", port=int(os.environ["BENCH_PORT"]), requests_per_minute=MOST, burst=MOST
    )


@gpuserve.register(app)
class Asgi(BASE):  # type: ignore[misc,valid-type]
    """Behind Modal's inputs."""

    env = ENV
    http = gpuserve.Http(keys=KEYS, requests_per_minute=MOST, burst=MOST)
