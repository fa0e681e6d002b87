"""A sentence-transformers model that computes no padding.

Its own layers run over one row of whole sequences laid end to end; only attention knows where each begins, and
positions start again at each. Pooling and all that follows are sentence-transformers' own.

Attention runs over parts of a row: on a processor over sequences of one length, without a mask; on a GPU, where each
launch costs more than what few sequences compute, over many of like length, with a mask. In half precision a GPU has
kernels of variable length, which take the row as it is.

Source:
    ``transformers.AttentionInterface`` is the documented way to give a model another attention function, and
    ``torch.nn.attention.varlen`` torch's to kernels of variable length, for half precision alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gpuserve.models.calibration import fastest
from gpuserve.models.row import Row
from gpuserve.runtime.packing import Pack, pack

try:
    from torch.nn.attention.varlen import varlen_attn as _varlen
except ImportError:  # Source: torch 2.10 is the first to have it
    _varlen = None

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TOLERANCE", "SentenceEncoder"]

# Between our output and sentence-transformers' own, at most this. Source: float32's rounding over a dozen layers.
TOLERANCE = 1e-5
# The same for a model in another precision. Source: two units in the last place of a number near 1, which is what such
# a model's own answers differ by with the batch that a text is in.
_TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Tokens in a row, to choose from at warm-up: small rows fit a processor's cache, large ones fill a GPU.
_ROWS = (512, 1024, 2048)
_GPU_ROWS = (1024, 4096, 16384, 65536)
_IMPLEMENTATION = "gpuserve_packed"
# What each architecture calls its first position. Source: transformers 5's modelling files; RoBERTa and its kin begin
# after the padding index. Architectures whose attention is more than softmax(QK)V over the whole text (relative
# positions, windows) are not here, and are padded.
_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert"})
_FROM_ZERO = frozenset({"bert", "distilbert", "electra"})
_PROBES = (
    "a",
    "Words, of SEVERAL lengths!",
    "  padded with blanks  ",
    "one two three " * 400,
    "Grüße, 世界",
    "x y " * 30,
)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Row | None = None,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each sequence of a row: ``(1, H, T, D)`` in, ``(1, T, H, D)`` out.

    Without *packing* it is torch's own, so that the model stays usable in the ordinary way.
    """
    if packing is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **rest
        )
        return plain
    if packing.offsets is not None:
        whole = (one[0].transpose(0, 1) for one in (query, key, value))
        return _varlen(*whole, packing.offsets, packing.offsets, packing.longest, packing.longest)[None], None
    _, heads, tokens, width = query.shape
    answer = query.new_empty((tokens, heads, width))
    for part in packing.parts:
        q, k, v = (part.spread(one[0, :, part.start : part.end]) for one in (query, key, value))
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=part.mask, scale=scaling)
        answer[part.start : part.end] = part.gather(found)
    return answer[None], None


AttentionInterface.register(_IMPLEMENTATION, _attend)
AttentionMaskInterface.register(_IMPLEMENTATION, sdpa_mask)


class SentenceEncoder:
    """Turns texts into vectors, packed where the model allows it and padded where it does not.

    Args:
        model: Any sentence-transformers model; its architecture decides, and a comparison with its own output.
        normalize: Whether vectors are brought to length 1.

    Attributes:
        padded_because: Why this model is padded; ``None`` if it is packed.
        row_tokens: Tokens that a row holds, as `calibrate` found best.
    """

    def __init__(self, model: SentenceTransformer, *, normalize: bool = True) -> None:
        self.model = model
        self.row_tokens = _ROWS[-2]
        self._normalize = normalize
        self._transformer: Any = model[0]
        self._varlen = model.device.type == "cuda" and model.dtype in _TOLERANCES and _varlen is not None
        self.padded_because = self._reason_to_pad()
        if self.padded_because is None:
            self.padded_because = self._try_packing()
            if self._varlen and self.padded_because is not None:  # the kernels are not for this GPU, or this torch
                self._varlen = False
                self.padded_because = self._try_packing()

    @property
    def dimensions(self) -> int:
        """The length of a vector."""
        size = self.model.get_embedding_dimension()
        return int(size) if size is not None else int(self.encode(["a"]).shape[1])

    def tokens_of(self, text: str) -> int:
        """About how many tokens *text* is, without tokenising it: at least 1, at most what the model reads.

        Source:
            WordPiece makes a token of about four characters of English.
        """
        return max(1, min(len(text) // 4 + 2, self.model.max_seq_length or len(text)))

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the model reads of *texts*, exactly."""
        return sum(len(one) for one in self._tokenised(texts))

    def encode(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors ``(B, D)``, float32, in the order of *texts*."""
        if not texts:
            return np.empty((0, self.dimensions), np.float32)
        if self.padded_because is not None:
            return self._encode_padded(texts)
        sequences = self._tokenised(texts)
        rows = pack([len(one) for one in sequences], self.row_tokens)
        with torch.inference_mode():
            parts = torch.cat([self._run(row, sequences) for row in rows])
            order = torch.tensor([place for row in rows for place in row.order], device=parts.device)
            answer = torch.empty_like(parts)
            answer[order] = parts
        found: np.ndarray[Any, np.dtype[np.float32]] = answer.float().cpu().numpy()
        return found

    def calibrate(self, *, budget_s: float = 2.0) -> None:
        """Find the row length that this device is fastest with, in *budget_s* seconds or one run of each."""
        if self.padded_because is not None:
            self.encode(["warm"])
            return
        on_gpu = self.model.device.type != "cpu"
        # lengths as texts have them: many short, few long; for a GPU enough of them to fill its largest row
        texts = [" ".join(["word"] * words) for words in (4, 6, 8, 12, 16, 24, 40, 64, 120, 200)]
        texts *= 4 if not on_gpu else 130
        self.encode(texts[:10])  # the first run allocates
        self.row_tokens = fastest(
            _GPU_ROWS if on_gpu else _ROWS, lambda tokens: self._seconds(texts, tokens), budget_s=budget_s
        )

    def _seconds(self, texts: Sequence[str], row_tokens: int) -> float:
        self.row_tokens = row_tokens
        began = time.perf_counter()
        self.encode(texts)
        return time.perf_counter() - began

    def _encode_padded(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        # small batches of like length: the model sorts them, and pads each to its own longest
        found = self.model.encode(
            list(texts), batch_size=8, normalize_embeddings=self._normalize, show_progress_bar=False
        )
        return np.asarray(found, np.float32)

    def _tokenised(self, texts: Sequence[str]) -> list[list[int]]:
        encoded: dict[str, list[list[int]]] = self.model.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.model.max_seq_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return encoded["input_ids"]

    def _run(self, row: Pack, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """The vectors ``(B, D)`` of one row, in the row's order."""
        network = self._transformer.model
        device = self.model.device
        ids = torch.tensor([[token for place in row.order for token in sequences[place]]], device=device)
        restarted = [torch.arange(group.length).repeat(group.count) for group in row.groups]
        positions = (torch.cat(restarted) + self._first_position)[None].to(device)
        laid = Row.of(row, device, varlen=self._varlen)
        hidden = network(input_ids=ids, position_ids=positions, packing=laid).last_hidden_state[0]
        pooled = [self._pool(*part.batch(hidden[part.start : part.end])) for part in laid.parts]
        features: dict[str, Any] = {"sentence_embedding": torch.cat(pooled)}
        for module in list(self.model)[2:]:
            features = module(features)
        vectors: torch.Tensor = features["sentence_embedding"]
        return torch.nn.functional.normalize(vectors, dim=1) if self._normalize else vectors

    def _pool(self, batch: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        given = {"token_embeddings": batch, "attention_mask": inside}
        pooled: torch.Tensor = self.model[1](given)["sentence_embedding"]
        return pooled

    @property
    def _first_position(self) -> int:
        config = self._transformer.model.config
        return config.pad_token_id + 1 if config.model_type in _AFTER_PADDING else 0

    def _reason_to_pad(self) -> str | None:
        network = getattr(self._transformer, "model", None)
        kind = getattr(getattr(network, "config", None), "model_type", None)
        if kind not in _AFTER_PADDING | _FROM_ZERO:
            return f"the architecture {kind!r} is not one whose attention can be cut into sequences"
        if len(self.model) < 2 or type(self.model[1]).__name__ != "Pooling":  # noqa: PLR2004 (transformer and pooling)
            return "the model does not pool its tokens right after the transformer"
        if self.model.default_prompt_name is not None:
            return "the model puts a prompt before each text"
        return None

    def _try_packing(self) -> str | None:
        """Compare both ways on a few texts; why the packed one cannot be used, if so."""
        expected = self._encode_padded(_PROBES)
        network = self._transformer.model
        before = network.config._attn_implementation
        try:
            network.set_attn_implementation(_IMPLEMENTATION)
            found = self.encode(_PROBES)
        except (TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
            network.set_attn_implementation(before)
            return f"packing failed with {type(error).__name__}: {error}"
        difference = float(np.abs(found - expected).max())
        if not difference <= _TOLERANCES.get(self.model.dtype, TOLERANCE):
            network.set_attn_implementation(before)
            return f"packed vectors differ from the model's own by {difference:.1e}"
        return None
