"""Ray Serve: one replica of one deployment."""

import signal
import sys

from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=100)
class Noop:
    async def __call__(self, request: Request) -> dict[str, str]:
        return {"output": (await request.json())["input"]}


serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(Noop.bind(), route_prefix="/predict")
signal.sigwait({signal.SIGTERM, signal.SIGINT})
serve.shutdown()
