"""A Llama of 1.1 billion random parameters with a tokenizer of bytes: prompts in, 32 token ids each out."""

import os
from pathlib import Path
from typing import Any

TOKENS = 32


def make(folder: Path) -> int:
    """Write it; how many parameters it has. Its shape is Llama 3.2 1B's, with fewer words and a head of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: place for place, one in enumerate(special + letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=4096, **marks).save_pretrained(folder)
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
        dtype="bfloat16",
    )  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(one.numel() for one in model.parameters())


class Llama:
    """It, on the GPU."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        folder = os.environ["BENCH_LLAMA"]
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": 0}).eval()
        self.generate(["warm"])

    def generate(self, prompts: list[str]) -> list[list[int]]:
        """Continue each."""
        import torch

        given = self.tokenizer(prompts, return_tensors="pt", padding=True, truncation=True, max_length=256)
        given = {name: given[name].to("cuda") for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            found = self.model.generate(**given, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        answers: list[list[int]] = found[:, given["input_ids"].shape[1] :].tolist()
        return answers
