"""What a fine-tuning declares: the base, the rows, the adapter, the checkpoints and what it must hold to be served."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gpuserve.prices import Prices
from gpuserve.specs.base import Spec
from gpuserve.specs.budget import Budget, HourlyCost
from gpuserve.specs.dataset import AnyDataset, VolumeDataset
from gpuserve.specs.function_options import MOUNTABLE, Gpus, Secrets
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.source import FolderSource, HubSource, VolumeSource
from gpuserve.specs.tuning import AnyTracking, Gate, Lora
from gpuserve.specs.weights import WeightsDeclaration

__all__ = ["RUN", "TrainingDeclaration"]

# Source: Modal's guide to time-outs: 24 hours at most, for each attempt on its own.
_DAY_S = 24 * 3600
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
RUN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
"""What a run may be called: it is a folder's name."""
_FP16 = (
    "fp16 is refused: its largest number is 65,504, which activations of Llama's kind pass, and its small gradients "
    "vanish without loss scaling; GPUs since Ampere (A10, A100, L4, H100) compute in bf16, which has fp32's range. "
    "Write 'auto', which takes bf16 where the device has it and fp32 elsewhere"
)
# What a run's numbers depend on: a run that was begun with others is not resumed.
_IDENTITY = (
    "base", "dataset", "evaluation", "chat_template", "loss", "lora", "precision", "seed", "epochs", "steps",
    "batch_size", "gradient_accumulation", "learning_rate", "schedule", "warmup_steps", "weight_decay",
    "max_grad_norm", "max_length", "packing", "evaluate_every", "trainer",
)  # fmt: skip
# What the builder sets itself, and what it cannot do without.
_OURS = frozenset(
    {"output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model", "bf16", "fp16", "seed",
     "data_seed", "report_to", "resume_from_checkpoint", "ignore_data_skip", "load_best_model_at_end", "max_steps",
     "num_train_epochs", "push_to_hub", "eval_strategy", "eval_steps", "logging_steps", "logging_strategy",
     "trust_remote_code", "auto_find_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps",
     "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "max_length", "packing",
     "completion_only_loss", "assistant_only_loss", "chat_template_path", "full_determinism"}
)  # fmt: skip


class TrainingDeclaration(Spec):
    """What a `FineTuneJob` subclass declares as class attributes; see there."""

    name: Annotated[str, Field(pattern=_NAME)]
    """what the adapter and its served alias are called"""
    image: ImageSpec | None = None
    """the image, with torch, transformers, trl and peft"""
    gpu: Gpus = None
    """a GPU as in 'A100-80GB', or several in the order of preference"""
    base: WeightsDeclaration
    """the model to tune: a VolumeWeightsCache, HubSource, FolderSource or VolumeSource"""
    dataset: AnyDataset | None = None
    """the rows: FileDataset, VolumeDataset or HubDataset; or override rows()"""
    evaluation: AnyDataset | float | None = None
    """rows to evaluate on, or the fraction of the dataset that is kept back for it, above 0 and below 1"""
    chat_template: Annotated[str | None, Field(max_length=100_000)] = None
    """a Jinja template, where the tokenizer has none or another is meant"""
    loss: Literal["auto", "completion", "assistant", "all"] = "auto"
    """what is learnt: 'completion' the last answer alone, 'assistant' every answer of a chat, 'all' the prompt too"""
    lora: Lora = Lora()
    """the adapter, e.g. Lora(rank=16, target_modules=('q_proj', 'v_proj'), four_bit=True)"""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """'auto' is bf16 where the device has it, and fp32 elsewhere"""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 42
    """of the adapter's first values, the order of the rows and dropout"""
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """times that all rows are seen; steps goes before it"""
    steps: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """steps of the optimiser, where it is not epochs that count"""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 4
    """rows a device holds at once"""
    gradient_accumulation: Annotated[int, Field(ge=1, le=65_536)] = 1
    """batches a step of the optimiser"""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """the largest step size"""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """how the step size falls"""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """steps over which it rises first"""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's"""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """gradients are clipped to this norm, which the NaN guard reads"""
    max_length: Annotated[int, Field(ge=2, le=1 << 20)] = 1024
    """tokens of a row that are read"""
    packing: bool = False
    """whether short rows share a sequence"""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """steps between checkpoints: the most that a kill costs"""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """checkpoints that stay"""
    evaluate_every: Annotated[int | None, Field(ge=1)] = None
    """steps between evaluations; at the end alone unless given"""
    log_every: Annotated[int, Field(ge=1)] = 10
    """steps between lines of progress"""
    runs_volume: Annotated[str, Field(pattern=_NAME)] = "gpuserve-training"
    """the Modal Volume with the runs: checkpoints, reports"""
    adapters_volume: Annotated[str, Field(pattern=_NAME)] = "gpuserve-adapters"
    """the Modal Volume that adapters are published into"""
    gate: tuple[Gate, ...] = ()
    """what the adapter must hold to be promoted; without one it is published and not promoted"""
    tracking: tuple[AnyTracking, ...] = ()
    """MlflowTracking, WandbTracking"""
    trainer: Mapping[str, Any] = {}
    """arguments handed on to trl.SFTConfig as they are"""
    secrets: Secrets = ()
    """SecretSpec or modal.Secret objects"""
    timeout_s: Annotated[int, Field(ge=60, le=_DAY_S)] = 6 * 3600
    """seconds that one attempt may take, 60 to 86,400; a longer training is a chain of attempts"""
    stop_before_s: Annotated[int, Field(ge=1, le=_DAY_S)] = 120
    """seconds before the time-out by which an attempt has its last checkpoint"""
    max_attempts: Annotated[int, Field(ge=1, le=10_000)] = 50
    """attempts in a chain"""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """times that an attempt which died is started again, from its last checkpoint"""
    cpu: Annotated[float | None, Field(gt=0, le=64)] = None
    """physical cores to reserve"""
    memory_mib: Annotated[int | None, Field(ge=128, le=344_064)] = None
    """MiB of memory to reserve"""
    ephemeral_disk_mib: Annotated[int | None, Field(ge=524_288, le=3_145_728)] = None
    """MiB of scratch disk, from 524,288"""
    env: Mapping[str, str] = {}
    """environment variables of the container"""
    volumes: Annotated[Mapping[str, Any], MOUNTABLE] = {}
    """modal.Volume objects by the absolute path that they are mounted at"""
    cloud: str | None = None
    """the cloud to run in"""
    region: str | tuple[str, ...] | None = None
    """the region or regions to run in"""
    budget: Budget | None = None
    """the most that it may cost an hour"""
    modal: Mapping[str, Any] = {}
    """arguments handed on to modal's app.cls as they are"""

    @field_validator("base", mode="before")
    @classmethod
    def _in_a_cache(cls, value: Any) -> Any:
        if isinstance(value, HubSource | FolderSource | VolumeSource):
            return WeightsDeclaration(source=value)
        return value

    @field_validator("base")
    @classmethod
    def _a_model(cls, value: WeightsDeclaration) -> WeightsDeclaration:
        if value.source.kind not in {"hub", "folder", "volume"}:
            raise ValueError("is an adapter; write the source of the model that is to be tuned")
        return value

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: Any) -> Any:
        if isinstance(value, str) and value in {"fp16", "float16", "half"}:
            raise ValueError(_FP16)
        return value

    @field_validator("evaluation")
    @classmethod
    def _a_part(cls, value: Any) -> Any:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a fraction must be above 0 and below 1; write 0.1 for a tenth of the rows")
        return value

    @field_validator("gate", "tracking", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if value is None:
            return ()
        return tuple(value) if isinstance(value, list | tuple) else (value,)

    @field_validator("trainer")
    @classmethod
    def _not_ours(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        taken = sorted(set(value) & _OURS)
        if taken:
            raise ValueError(f"{', '.join(taken)} cannot be set here: the builder does; write its own field, if any")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = []
        if self.lora.four_bit and self.gpu is None:
            faults.append("lora.four_bit needs a GPU, for bitsandbytes' kernels; write gpu = 'L4', or leave four_bit")
        if self.stop_before_s >= self.timeout_s:
            faults.append(
                f"stop_before_s got {self.stop_before_s}, and timeout_s is {self.timeout_s}; an attempt would end "
                f"before its first step: lower stop_before_s, or raise timeout_s"
            )
        kinds = [one.kind for one in self.tracking]
        faults += [f"tracking has {kind} twice; leave one" for kind in sorted({k for k in kinds if kinds.count(k) > 1})]
        budget = self.budget.fault(self.hourly_cost) if self.budget is not None else None
        faults += [budget] if budget is not None else []
        taken = sorted({self.runs_path, self.adapters_path, self.base.mounted_at} & set(self.volumes))
        faults += [f"volumes mounts at {path!r}, where the builder mounts its own; move yours" for path in taken]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def runs_path(self) -> str:
        """Where the runs are mounted."""
        return f"/gpuserve-runs/{self.runs_volume}"

    @property
    def adapters_path(self) -> str:
        """Where adapters are published."""
        return f"/gpuserve-weights/{self.adapters_volume}"

    @property
    def dataset_volumes(self) -> tuple[VolumeDataset, ...]:
        """The volumes that rows are read from."""
        return tuple(one for one in (self.dataset, self.evaluation) if isinstance(one, VolumeDataset))

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs that it may run on, in the order of preference."""
        return (self.gpu,) if isinstance(self.gpu, str) else self.gpu or ()

    @property
    def all_secrets(self) -> tuple[Any, ...]:
        """Those that were declared, and those that the base and the tracking need."""
        needed: Sequence[Any] = (self.base.token, *(one.secret for one in self.tracking))
        return (*self.secrets, *(one for one in needed if one is not None and one not in self.secrets))

    @property
    def hourly_cost(self) -> HourlyCost:
        """The most that it can cost an hour at list prices, which its budget is compared with."""
        return self.hourly_cost_at(None)

    def hourly_cost_at(self, prices: Prices | None) -> HourlyCost:
        """The most that it can cost an hour at these prices: one container at a time."""
        region = self.region is not None
        return HourlyCost.of(gpus=self.gpus, cpu=self.cpu, memory_mib=self.memory_mib, region=region, prices=prices)

    @property
    def identity(self) -> dict[str, str]:
        """A digest of each field that a run's numbers depend on."""
        told = self.model_dump(mode="json", include=set(_IDENTITY) - {"base", "trainer"})
        told["base"] = self.base.source.model_dump(mode="json")
        told["trainer"] = {name: repr(value) for name, value in sorted(self.trainer.items())}
        return {
            name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
            for name, value in sorted(told.items())
        }

    def steps_for(self, rows: int) -> int:
        """The steps of the optimiser that *rows* rows take.

        Source: transformers' Trainer, ``set_initial_training_values``: a last short step of an epoch counts.
        """
        if self.steps is not None:
            return self.steps
        batches = math.ceil(rows / self.batch_size)
        return math.ceil(self.epochs * max(1, math.ceil(batches / self.gradient_accumulation)))
