"""One side of the comparison, in a process of its own: the seconds from the first step to the last checkpoint.

Both sides train in turns of a few steps, so that both meet the same neighbours; what a side waits for is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["TASKS"]


def _take_turns(steps: int) -> Callable[[], float]:
    """Before each so many steps, say so and wait for a line; how long was waited up to now."""
    from trl import SFTTrainer

    real, waited, done = SFTTrainer.training_step, [0.0], [0]

    def in_turn(self: Any, *given: Any, **named: Any) -> Any:
        if done[0] % steps == 0:
            began = time.perf_counter()
            sys.stdout.write("turn\n")
            sys.stdout.flush()
            sys.stdin.readline()
            waited[0] += time.perf_counter() - began
        done[0] += 1
        return real(self, *given, **named)

    SFTTrainer.training_step = in_turn
    return lambda: waited[0]


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

    folder, spent, waited = Path(told["folder"]), {}, _take_turns(told["turn"])
    real = sft.SftSession.train

    def timed(self: Any, resume: Any) -> bool:
        began = time.perf_counter()
        whole = real(self, resume)
        spent["seconds"] = time.perf_counter() - began - waited()
        return whole

    sft.SftSession.train = timed  # type: ignore[method-assign]

    class Tune(FineTuneJob):
        base = FolderSource(Path(told.get("llama", folder / "base")))
        gpu = "H100" if "llama" in told else None
        dataset = FileDataset(folder / "rows.jsonl")
        steps, checkpoint_every, batch_size, max_length = told["steps"], told["every"], told["batch"], told["length"]
        lora = Lora(rank=16, alpha=32, dropout=0.05, four_bit=told.get("four_bit", False))
        learning_rate, schedule, log_every = 1e-3, "linear", 10

    root = folder / ("ours-4" if told.get("four_bit") else "ours")
    report = Tune.local(f"run-{told['number']}", root=root, on_event=lambda _event: None)
    losses = [one["loss"] for one in report.history if "loss" in one]
    return {"steps": told["steps"], "seconds": spent["seconds"], "loss": losses[-1]}


def bare(told: dict[str, Any]) -> dict[str, Any]:
    """TRL alone, as its documentation has it, with the same arguments."""
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
    from trl import SFTConfig, SFTTrainer

    folder = Path(told["folder"])
    base, on_gpu = told.get("llama", folder / "base"), "llama" in told
    dtype = torch.bfloat16 if on_gpu else torch.float32
    four_bit = {
        "device_map": {"": 0},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        ),
    }  # fmt: skip
    set_seed(42)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **(four_bit if told.get("four_bit") else {})),
        processing_class=AutoTokenizer.from_pretrained(base),
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
            lr_scheduler_type="linear", logging_steps=10, seed=42, data_seed=42, bf16=on_gpu, report_to="none",
            gradient_checkpointing=on_gpu, dataloader_pin_memory=on_gpu, disable_tqdm=True,
        ),
    )  # fmt: skip
    set_seed(42)
    waited = _take_turns(told["turn"])
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began - waited()
    losses = [one["loss"] for one in trainer.state.log_history if "loss" in one]
    return {"steps": told["steps"], "seconds": seconds, "loss": losses[-1]}


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"prepare": prepare, "ours": ours, "bare": bare}

if __name__ == "__main__":
    found = TASKS[sys.argv[1]](json.loads(sys.argv[2]))
    sys.stdout.write(json.dumps(found) + "\n")
