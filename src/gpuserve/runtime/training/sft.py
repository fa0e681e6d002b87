"""TRL's `SFTTrainer`, with checkpoints that are whole, a guard against NaN, and a stop between two steps.

What is numerical is TRL's and PEFT's own; here is when it is saved, when it is stopped, when it is not believed.

Source:
    transformers 5, ``Trainer``: ``_save_checkpoint`` writes below ``_get_output_dir``; ``_clip_grad_norm`` is called
    once a step, before the optimiser changes anything; torch files are read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate.utils.environment
import accelerate.utils.imports
import datasets
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from gpuserve.exceptions import DatasetError, DivergedError, TrainingError
from gpuserve.runtime.training.attempts import AttemptClock, Interruption
from gpuserve.runtime.training.checkpoints import Checkpoint, CheckpointStore
from gpuserve.runtime.training.rows import Rows
from gpuserve.specs.training import TrainingDeclaration

__all__ = ["SftSession", "four_bit_of", "precision_of"]

_SERVED = "served"
# The whole of TrainingArguments as a pickle: nothing reads it, and nothing should.
_UNREAD = ("training_args.bin",)


def precision_of(declared: str) -> torch.dtype:
    """What numbers the base is held and computed in.

    Raises:
        TrainingError: If bf16 was asked for by name and the device does not have it.
    """
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if declared == "bf16" and torch.cuda.is_available() and not has_bf16:
        name = torch.cuda.get_device_name()
        raise TrainingError(f"precision is bf16, which {name} does not compute in; write 'auto', or another gpu")
    return torch.bfloat16 if (has_bf16 and declared != "fp32") or declared == "bf16" else torch.float32


def four_bit_of(dtype: torch.dtype) -> BitsAndBytesConfig:
    """How QLoRA holds the base: in four bits, computed in *dtype*.

    Source:
        QLoRA (arXiv:2305.14314): NormalFloat of four bits, and its scales quantised once more.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


class _Trainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose checkpoints go through a store, and which believes no number that is none."""

    def __init__(self, store: CheckpointStore, clock: AttemptClock, **rest: Any) -> None:
        self._store, self._clock = store, clock
        self._step_loss: torch.Tensor | float = 0.0
        self._writing: Path | None = None
        self.kept: int | None = None
        super().__init__(**rest)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._step_loss = self._step_loss + loss.detach()
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        loss, self._step_loss = self._step_loss, 0.0
        if not math.isfinite(float(norm + loss)):  # one look at the device a step
            quantity = "loss" if not math.isfinite(float(loss)) else "grad_norm"
            raise DivergedError(self.state.global_step + 1, quantity, self.kept)
        return norm

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._writing) if self._writing is not None else str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        began = time.monotonic()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise DivergedError(self.state.global_step, f"weights ({name})", self.kept)

        def write(folder: Path) -> None:
            self._writing = folder
            try:
                # past SFTTrainer's own, which only writes a model card first
                Trainer._save_checkpoint(self, model, trial)
            finally:
                self._writing = None
            inner = next(folder.iterdir())
            for path in sorted(inner.iterdir()):
                if path.name in _UNREAD:
                    path.unlink()
                else:
                    path.rename(folder / path.name)
            inner.rmdir()

        self.kept = self._store.publish(self.state.global_step, write).step
        self._clock.save_took(time.monotonic() - began, time.monotonic())


class _Stop(TrainerCallback):  # type: ignore[misc]
    """Ends an attempt after a step, with a checkpoint; tells of what is logged."""

    def __init__(self, clock: AttemptClock, interruption: Interruption, on_log: Callable[..., None]) -> None:
        self._clock, self._interruption, self._on_log = clock, interruption, on_log

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args
        now = time.monotonic()
        self._clock.step_ended(now)
        if state.global_step < state.max_steps and (self._interruption.asked or self._clock.must_stop(now)):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there is no time; the attempt that goes on evaluates when it is due

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        del args, control
        logs: Mapping[str, Any] = given.get("logs") or {}
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}
        self._on_log(state.global_step, state.max_steps, numbers)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state, control
        self._clock.other_ended(time.monotonic())


class SftSession:
    """A model, its adapter and the rows, ready to be trained and evaluated.

    Args:
        declaration: What was declared.
        base: The verified folder of the base.
        train: Rows to learn from.
        evaluation: Rows to evaluate on; ``None`` if there are none.
        store: The run's checkpoints.
        clock: When the attempt must stop.
        interruption: Whether its container is to go.
        scratch: A folder for what is thrown away.
        on_log: Told of step, steps and metrics.
    """

    def __init__(
        self,
        declaration: TrainingDeclaration,
        base: Path,
        train: Rows,
        evaluation: Rows | None,
        *,
        store: CheckpointStore,
        clock: AttemptClock,
        interruption: Interruption,
        scratch: Path,
        on_log: Callable[[int, int, Mapping[str, float]], None],
    ) -> None:
        self._declaration, self._interruption = declaration, interruption
        datasets.disable_progress_bars()
        self.steps = declaration.steps_for(len(train))
        dtype = precision_of(declaration.precision)
        set_seed(declaration.seed)
        self.tokenizer = _tokenizer(base, declaration, train)
        with _quiet(), _environment_kept():
            self._trainer = _Trainer(
                store=store,
                clock=clock,
                model=_model(base, declaration, dtype),
                args=_arguments(declaration, train, evaluation, self.steps, dtype, scratch),
                train_dataset=datasets.Dataset.from_list(list(train.rows)),
                eval_dataset=datasets.Dataset.from_list(list(evaluation.rows)) if evaluation is not None else None,
                processing_class=self.tokenizer,
                peft_config=_lora(declaration),
                callbacks=[_Stop(clock, interruption, on_log)],
            )
        self._trainer.remove_callback(PrinterCallback)
        if len(self._trainer.train_dataset) == 0:
            raise DatasetError("dataset", ("no row has a token that is learnt within max_length; raise max_length",))

    @property
    def model(self) -> Any:
        """The base with the adapter."""
        return self._trainer.model

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(self._trainer.state.global_step)

    @property
    def history(self) -> tuple[Mapping[str, float], ...]:
        """What was logged, by step, by all attempts."""
        return tuple(
            {key: float(value) for key, value in one.items() if isinstance(value, int | float)}
            for one in self._trainer.state.log_history
        )

    def train(self, resume: Checkpoint | None) -> bool:
        """Train until the end, or until the attempt must stop; whether it is the end.

        Raises:
            DivergedError: If the loss or the gradient is no number.
            DiskFullError: If a checkpoint finds no room; the one before is whole.
        """
        self._trainer.kept = resume.step if resume is not None else None
        set_seed(self._declaration.seed)
        with _quiet(), _environment_kept():
            if resume is not None and resume.step >= self.steps:
                self._trainer._load_from_checkpoint(str(resume.path))
                state = resume.path / "trainer_state.json"
                self._trainer.state = type(self._trainer.state).load_from_json(str(state))
                return True
            self._trainer.train(resume_from_checkpoint=str(resume.path) if resume is not None else None)
        return self.step >= self.steps

    def evaluate(self) -> dict[str, float]:
        """The metrics of TRL's evaluation; none without rows for it."""
        if self._trainer.eval_dataset is None:
            return {}
        with _quiet():
            found: dict[str, Any] = self._trainer.evaluate()
        about_itself = ("_runtime", "_per_second", "_num_tokens")  # how it was measured, and not what
        return {
            name: float(value)
            for name, value in found.items()
            if isinstance(value, int | float) and not name.endswith(about_itself) and name != "epoch"
        }

    @contextlib.contextmanager
    def running_with(self, adapter: Path) -> Iterator[None]:
        """Meanwhile the model runs with another adapter of the same base.

        Raises:
            TrainingError: If it does not fit the base.
        """
        try:
            with _quiet():
                self.model.load_adapter(str(adapter), adapter_name=_SERVED, is_trainable=False)
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(f"the adapter in service does not fit this base: {error}") from error
        own = "default"
        self.model.set_adapter(_SERVED)
        try:
            yield
        finally:
            self.model.set_adapter(own)
            self.model.delete_adapter(_SERVED)

    def close(self) -> None:
        """Let go of the model and what trained it."""
        del self._trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _tokenizer(base: Path, declaration: TrainingDeclaration, rows: Rows) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    if declaration.chat_template is not None:
        tokenizer.chat_template = declaration.chat_template
    if rows.chat and not tokenizer.chat_template:
        raise DatasetError(
            "dataset", ("its rows are chats, and the base's tokenizer has no chat template; write chat_template = …",)
        )
    if rows.loss == "assistant" and "{% generation %}" not in (tokenizer.chat_template or ""):
        fault = "loss = 'assistant' needs a chat template that marks the answers with {% generation %}"
        raise DatasetError("dataset", (f"{fault}; write one as chat_template, or loss = 'completion'",))
    return tokenizer


def _model(base: Path, declaration: TrainingDeclaration, dtype: torch.dtype) -> Any:
    rest: dict[str, Any] = {}
    if declaration.lora.four_bit:
        if not torch.cuda.is_available():
            raise TrainingError("lora.four_bit needs a GPU, and this container has none; write gpu = 'L4'")
        rest["quantization_config"] = four_bit_of(dtype)
        rest["device_map"] = {"": 0}
    model = AutoModelForCausalLM.from_pretrained(
        str(base), dtype=dtype, local_files_only=True, use_safetensors=True, **rest
    )
    model.config.use_cache = False
    return model


def _lora(declaration: TrainingDeclaration) -> LoraConfig:
    lora = declaration.lora
    targets = lora.target_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _arguments(
    declaration: TrainingDeclaration,
    train: Rows,
    evaluation: Rows | None,
    steps: int,
    dtype: torch.dtype,
    scratch: Path,
) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    often = declaration.evaluate_every if evaluation is not None else None
    ours: dict[str, Any] = {
        "output_dir": str(scratch),
        "max_steps": steps,
        "per_device_train_batch_size": declaration.batch_size,
        "per_device_eval_batch_size": declaration.batch_size,
        "gradient_accumulation_steps": declaration.gradient_accumulation,
        "learning_rate": declaration.learning_rate,
        "lr_scheduler_type": declaration.schedule,
        "warmup_steps": declaration.warmup_steps,
        "weight_decay": declaration.weight_decay,
        "max_grad_norm": declaration.max_grad_norm,
        "max_length": declaration.max_length,
        "packing": declaration.packing,
        "completion_only_loss": train.loss == "completion",
        "assistant_only_loss": train.loss == "assistant",
        "bf16": dtype == torch.bfloat16,
        "fp16": False,
        "seed": declaration.seed,
        "data_seed": declaration.seed,
        "save_strategy": "steps",
        "save_steps": declaration.checkpoint_every,
        "eval_strategy": "steps" if often else "no",
        "eval_steps": often,
        "logging_steps": declaration.log_every,
        "logging_nan_inf_filter": False,  # the guard has looked before
        "report_to": "none",
        "disable_tqdm": True,
    }
    theirs = {"gradient_checkpointing": on_gpu, "dataloader_pin_memory": on_gpu, **declaration.trainer}
    return SFTConfig(**{**theirs, **ours})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what libraries say of themselves and no user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Have accelerate leave the process's environment as it is.

    To find what of a setting is not its default, it takes away every variable and puts each back. Modal's client,
    which reads some of them in another thread, finds none meanwhile; and where a thread asks for one in C, the process
    ends with SIGSEGV now and then: glibc moves the table that ``getenv`` looks through. One process on its own device
    needs neither this nor the variable that has torch look for a GPU before forks.

    Source:
        accelerate 1.15, ``KwargsHandler.to_kwargs`` and ``is_cuda_available``; glibc before 2.41, ``setenv``.
    """
    places = ((accelerate.utils.environment, "clear_environment"), (accelerate.utils.imports, "patch_environment"))
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, lambda **_: contextlib.nullcontext())
    try:
        yield
    finally:
        for (module, name), theirs in zip(places, before, strict=True):
            setattr(module, name, theirs)
