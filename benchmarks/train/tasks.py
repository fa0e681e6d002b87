"""One side of the comparison, in a process of its own: the seconds from the first step to the last checkpoint."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["TASKS"]


def prepare(told: dict[str, Any]) -> dict[str, Any]:
    """A Llama of four layers and 7 million parameters with a tokenizer of bytes, and rows of the standard library."""
    import pydoc

    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = Path(told["folder"])
    special = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({one: place for place, one in enumerate(special + letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=1024, **marks)
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=6, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    texts = [pydoc.plain(pydoc.render_doc(name)) for name in ("json", "random", "statistics", "textwrap", "calendar")]
    letters_of_all = " ".join(" ".join(texts).split())
    pieces = [letters_of_all[start : start + 2 * told["length"]] for start in range(0, 256 * 100, 100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in pieces))
    return {}


def ours(told: dict[str, Any]) -> dict[str, Any]:
    """The builder: manifests, syncs, guard, progress and report included."""
    from gpuserve.builders.finetune import FineTuneJob
    from gpuserve.runtime.training import sft
    from gpuserve.specs.dataset import FileDataset
    from gpuserve.specs.source import FolderSource
    from gpuserve.specs.tuning import Lora

    folder, spent = Path(told["folder"]), {}
    real = sft.SftSession.train

    def timed(self: Any, resume: Any) -> bool:
        began = time.perf_counter()
        whole = real(self, resume)
        spent["seconds"] = time.perf_counter() - began
        return whole

    sft.SftSession.train = timed  # type: ignore[method-assign]

    class Tune(FineTuneJob):
        base = FolderSource(folder / "base")
        dataset = FileDataset(folder / "rows.jsonl")
        steps, checkpoint_every, batch_size, max_length = told["steps"], told["every"], told["batch"], told["length"]
        lora = Lora(rank=16, alpha=32, dropout=0.05)
        learning_rate, schedule, log_every = 1e-3, "linear", 10

    report = Tune.local(f"run-{told['number']}", root=folder / "ours", on_event=lambda _event: None)
    losses = [one["loss"] for one in report.history if "loss" in one]
    return {"steps": told["steps"], "seconds": spent["seconds"], "loss": losses[-1]}


def bare(told: dict[str, Any]) -> dict[str, Any]:
    """TRL alone, as its documentation has it, with the same arguments."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from trl import SFTConfig, SFTTrainer

    folder = Path(told["folder"])
    set_seed(42)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "base"),
        train_dataset=datasets.load_dataset(
            "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
        ),
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=SFTConfig(
            output_dir=str(folder / "bare" / f"run-{told['number']}"),
            max_steps=told["steps"], save_steps=told["every"], save_strategy="steps", save_total_limit=2,
            per_device_train_batch_size=told["batch"], max_length=told["length"], learning_rate=1e-3,
            lr_scheduler_type="linear", logging_steps=10, seed=42, data_seed=42, bf16=False, report_to="none",
            gradient_checkpointing=False, dataloader_pin_memory=False, disable_tqdm=True,
        ),
    )  # fmt: skip
    set_seed(42)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return {"steps": told["steps"], "seconds": seconds, "loss": losses[-1]}


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"prepare": prepare, "ours": ours, "bare": bare}

if __name__ == "__main__":
    found = TASKS[sys.argv[1]](json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
