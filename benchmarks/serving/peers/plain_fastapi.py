"""FastAPI on uvicorn with uvloop and httptools, one `encode` a request in its thread pool: what most people write."""

import sys
import time
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Body(BaseModel):
    input: str


if sys.argv[1] == "noop":

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, str]:
        return {"output": body.input}

elif sys.argv[1] == "slow":

    @app.post("/predict")
    def wait(body: Body) -> dict[str, str]:
        time.sleep(0.05)
        return {"output": body.input}

elif sys.argv[1] == "generate":
    from llama import Llama

    llama = Llama()

    @app.post("/predict")
    def generate(body: Body) -> dict[str, Any]:
        return {"output": llama.generate([body.input])[0]}

else:
    from minilm import open_model

    model = open_model()

    @app.post("/predict")
    def embed(body: Body) -> dict[str, Any]:
        return {"output": model.encode(body.input).tolist()}


# 503 beyond so many connections, where there are more callers than places
most = 64 if sys.argv[1] == "slow" else None
port = int(sys.argv[2])
uvicorn.run(
    app, port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning", limit_concurrency=most
)
