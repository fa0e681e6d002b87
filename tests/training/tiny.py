"""A tiny Llama with a tokenizer of bytes, taught the standard library's own text on the spot: nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

STEPS = 24
_TALKATIVE = (
    "argparse asyncio collections datetime decimal email.message fractions ipaddress logging os pathlib statistics "
    "string subprocess threading urllib.request zipfile"
)
# A chat as one text; the second marks what the assistant says, which TRL then learns alone.
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED_CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def base_model(folder: Path, *, width: int = 64, steps: int = 90) -> Path:
    """Write a two-layer Llama that has read Python's docstrings, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: place for place, one in enumerate(special + letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    )
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    text = torch.tensor(tokenizer(" ".join(prose()), verbose=False)["input_ids"])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(text) - 48, (8,)).tolist()
        batch = torch.stack([text[start : start + 48] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prose() -> list[str]:
    """Sentences of Python's own docstrings."""
    text = " ".join(getattr(sys.modules[name], "__doc__", "") or "" for name in ("random", "json", "re", "tempfile"))
    return re.findall(r"[A-Z][^.\n]{20,80}", text)


def rows(count: int = 80) -> list[dict[str, str]]:
    """Rows of one pattern, which is soon learnt."""
    return [{"text": f"{name}: a module that Python brings."} for name in sorted(sys.stdlib_module_names)[:count]]


def docstrings(count: int = 400) -> list[dict[str, str]]:
    """Rows of text that Python ships: what its classes and functions say of themselves, in a fixed order."""
    found: set[str] = set()
    for name in _TALKATIVE.split():
        named = vars(importlib.import_module(name))
        kinds = [one for one in named.values() if isinstance(one, type)]
        for one in (*named.values(), *(part for kind in kinds for part in vars(kind).values())):
            if callable(one) and isinstance(one.__doc__, str):
                found.update(re.findall(r"[A-Z][^.]{30,150}\.", " ".join(one.__doc__.split())))
    return [{"text": text} for text in sorted(found)[:: max(1, len(found) // count)][:count]]


def write_rows(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def digest_of(folder: Path) -> str:
    """What an adapter's weights are, to the bit."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def seeded() -> random.Random:
    """Dice whose seed is printed, so that a failure can be repeated."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)
