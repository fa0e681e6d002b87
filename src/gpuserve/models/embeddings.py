"""`EmbeddingServer`: texts in, vectors out, without padding, with OpenAI's API beside our own."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from gpuserve.builders.batched import batched
from gpuserve.builders.server import WarmModelServer
from gpuserve.exceptions import RequestError
from gpuserve.specs.batching import Batching

if TYPE_CHECKING:
    import numpy as np
    from fastapi import APIRouter
    from sentence_transformers import SentenceTransformer

    from gpuserve.models.encoder import SentenceEncoder

__all__ = ["LONGEST", "EmbeddingServer", "Text"]

# A model reads its first few hundred tokens; what is longer by far is a mistake of the caller's.
LONGEST = 20_000
Text = Annotated[str, Field(max_length=LONGEST)]


class EmbeddingServer(WarmModelServer):
    """Serve a sentence-transformers model; subclass it and say which in `open_model`.

    Whole sequences run end to end in one row, so that no text pays for another's length; a model whose attention
    cannot be cut so is padded, which the server's log says.

    Attributes:
        model_name: What `POST /v1/embeddings` calls the model.
        normalize: Whether vectors have length 1.

    Examples:
        >>> import gpuserve
        >>> from gpuserve.models import EmbeddingServer
        >>> class Embedder(EmbeddingServer):
        ...     model_name = "all-MiniLM-L6-v2"
        ...     image = gpuserve.ImageSpec.debian("3.11").pip("sentence-transformers==6.2.0", "torch==2.13.0")
        ...
        ...     def open_model(self):
        ...         from sentence_transformers import SentenceTransformer
        ...
        ...         return SentenceTransformer("/weights/all-MiniLM-L6-v2")
    """

    model_name: ClassVar[str] = "embeddings"
    normalize: ClassVar[bool] = True
    batching: ClassVar[Batching] = Batching(max_batch_size=128, max_queue=8192, padded=False)

    encoder: SentenceEncoder

    def open_model(self) -> SentenceTransformer:
        """Load the model; called once a container.

        Raises:
            RequestError: Unless overridden.
        """
        raise RequestError(
            f"{type(self).__name__} does not say which model it serves; write "
            "def open_model(self): return SentenceTransformer('/path/of/the/model')",
            "no_model",
            500,
        )

    def load(self) -> None:
        """Open the model and see whether it can be packed."""
        from gpuserve.models.encoder import SentenceEncoder

        self.encoder = SentenceEncoder(self.open_model(), normalize=self.normalize)

    def warm_up(self) -> None:
        """Find the row length that the device is fastest with."""
        self.encoder.calibrate()

    def cost(self, item: str) -> float:
        """Tokens, about."""
        return float(self.encoder.tokens_of(item))

    @batched
    def embed(self, batch: list[Text]) -> list[np.ndarray]:
        """One vector ``(D,)`` of float32 a text."""
        return list(self.encoder.encode(batch))

    def routes(self, router: APIRouter) -> None:
        """OpenAI's embeddings API; call ``super().routes(router)`` where you add your own."""

        async def embeddings(request: Any) -> dict[str, Any]:
            texts = [request.input] if isinstance(request.input, str) else request.input
            for place, text in enumerate(texts):
                if not 1 <= len(text) <= LONGEST:
                    fault = f"input {place} has {len(text)} characters; send 1 to {LONGEST}"
                    raise RequestError(fault, "invalid_input", 400)
            vectors = await self.embed.submit_many(texts, key="embeddings")
            tokens = await asyncio.to_thread(self.encoder.count_tokens, texts)
            return {
                "object": "list",
                "model": self.model_name,
                "data": [
                    {"object": "embedding", "index": place, "embedding": _encoded(vector, request.encoding_format)}
                    for place, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }

        # the type is made for this model, so that it cannot stand in the signature
        embeddings.__annotations__["request"] = _request_type(self.model_name, self.encoder.dimensions)
        router.add_api_route("/v1/embeddings", embeddings, methods=["POST"])


def _request_type(model: str, dimensions: int) -> type[BaseModel]:
    """The request of OpenAI's embeddings API, for one model: what else a client sends is refused by name."""
    fields: dict[str, Any] = {
        "input": (str | Annotated[list[str], Field(min_length=1, max_length=2048)], ...),
        "model": (Literal[model], model),
        "encoding_format": (Literal["float", "base64"], "float"),
        "dimensions": (Literal[dimensions], dimensions),
        "user": (Annotated[str | None, Field(max_length=200)], None),
    }
    made: type[BaseModel] = create_model(
        "EmbeddingsRequest", __config__=ConfigDict(extra="forbid", strict=True), **fields
    )
    return made


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector.tolist()
