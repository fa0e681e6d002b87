"""A tiny base model, so that the example runs on any machine: two layers that have read Python's docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_SPECIAL = ["<pad>", "<s>", "</s>"]


def main(folder: Path = Path("base"), *, width: int = 64, steps: int = 90) -> None:
    """Train it on letters for a few seconds, and write it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: place for place, one in enumerate(_SPECIAL + letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = dict(zip(("pad_token", "bos_token", "eos_token"), _SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=256, **special)
    torch.manual_seed(7)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    prose = re.findall(
        r"[A-Z][^.\n]{20,80}", " ".join(sys.modules[name].__doc__ or "" for name in ("re", "json", "ast"))
    )
    text = torch.tensor(tokenizer(" ".join(prose), verbose=False)["input_ids"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(text) - 48, (8,)).tolist()
        batch = torch.stack([text[start : start + 48] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(__file__).parent / "base")
