"""LitServe: a batch of up to 32 that waits 5 ms for company where there is a model, as its documentation has it."""

import sys
from typing import Any

import litserve

EMBEDS, GENERATES = sys.argv[1] == "embed", sys.argv[1] == "generate"


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 (the hook gets it)
        if EMBEDS:
            from minilm import open_model

            self.model = open_model()
        if GENERATES:
            from llama import Llama

            self.llama = Llama()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["input"]

    def predict(self, given: Any) -> Any:
        if GENERATES:
            return self.llama.generate(given)
        return list(self.model.encode(given)) if EMBEDS else given

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"output": output.tolist() if EMBEDS else output}


if __name__ == "__main__":
    batching = {"max_batch_size": 32, "batch_timeout": 0.005} if EMBEDS or GENERATES else {}
    server = litserve.LitServer(Api(**batching), accelerator="auto", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", generate_client_file=False)
