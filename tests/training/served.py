"""A plain server of a base and of whatever adapter is in service: it knows nothing of how the adapter was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpuserve


class Bot(gpuserve.WarmModelServer):
    base_folder = ""

    @classmethod
    def prepare(cls, base: str, adapters: Path) -> None:
        cls.base_folder = base
        cache = gpuserve.VolumeWeightsCache(
            source=gpuserve.AliasSource("tuned"), volume="adapters", mount_path=str(adapters)
        )
        cls.adapters = {"tuned": cache}

    def load(self) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.base_folder)
        base = AutoModelForCausalLM.from_pretrained(self.base_folder)
        self.model = get_peft_model(base, LoraConfig(target_modules=["q_proj"]), adapter_name="none").eval()

    def load_adapter(self, name: str, path: Path) -> None:
        self.model.load_adapter(str(path), adapter_name=name)

    def use_adapter(self, name: str | None) -> None:
        self.model.set_adapter(name or "none")

    def unload_adapter(self, name: str) -> None:
        self.model.delete_adapter(name)

    @gpuserve.batched
    def complete(self, batch: list[dict[str, Any]]) -> list[str]:
        import torch

        found = []
        for one in batch:
            tokens = self.tokenizer(one["text"], return_tensors="pt")["input_ids"]
            with torch.inference_mode():
                made = self.model.generate(input_ids=tokens, max_new_tokens=24, do_sample=False, use_cache=False)
            found.append(self.tokenizer.decode(made[0, tokens.shape[1] :], skip_special_tokens=True))
        return found
