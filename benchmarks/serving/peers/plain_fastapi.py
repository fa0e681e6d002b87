"""FastAPI on uvicorn with uvloop and httptools, one `encode` a request in its thread pool: what most people write."""

import sys
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

else:
    from minilm import open_model

    model = open_model()

    @app.post("/predict")
    def embed(body: Body) -> dict[str, Any]:
        return {"output": model.encode(body.input).tolist()}


uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
