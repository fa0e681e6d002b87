"""What the control plane was sent."""

import asyncio

import pytest
from grpclib.client import Channel, UnaryUnaryMethod

from gpuserve.engine.protocol import RPCS


@pytest.fixture
def sent(engine):
    """The definition of a deployed function as the engine got it: ``sent(app, name)``, for the first of its GPUs."""
    path = engine.environment["MODAL_SERVER_URL"].removeprefix("unix://")
    token = {f"x-modal-token-{part}": engine.environment[f"MODAL_TOKEN_{part.upper()}"] for part in ("id", "secret")}

    async def ask(app, name):
        rpc = RPCS["FunctionGet"]
        async with Channel(path=path) as channel:
            method = UnaryUnaryMethod(channel, rpc.path, rpc.request, rpc.reply)
            reply = await method(rpc.request(app_name=app, object_tag=name), metadata=token)
        return sorted(reply.function.ranked_functions, key=lambda one: one.rank)

    def definition(app, name, rank=0):
        return asyncio.run(ask(app, name))[rank].function

    return definition
