"""The parts of a fine-tuning's declaration: the adapter, the gate and where its metrics are tracked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from gpuserve.specs.base import Spec
from gpuserve.specs.secret import SecretSpec

__all__ = ["AnyTracking", "Gate", "Lora", "MlflowTracking", "WandbTracking"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._/-]{0,199}$"


class Lora(Spec):
    """A low-rank adapter; with ``four_bit`` over a base that is held in 4 bits, which is QLoRA.

    Examples:
        >>> Lora(rank=8, target_modules=("q_proj", "v_proj")).alpha
        32.0
    """

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """the rank of the two matrices that are learnt for each module"""
    alpha: Annotated[float, Field(gt=0, le=65_536)] = 32.0
    """their weight is alpha / rank"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """the part of their input that is dropped while training"""
    target_modules: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | Literal["all-linear"] = (
        "all-linear"
    )
    """the modules, as in ('q_proj', 'v_proj'); every linear one unless given"""
    four_bit: bool = False
    """whether the base is held in 4 bits (NF4, by bitsandbytes, on a GPU)"""


class Gate(Spec):
    """A metric that a new adapter must hold against the one in service, or it is not promoted.

    Examples:
        >>> gate = Gate(metric="eval_loss", better="lower", tolerance=0.02)
        >>> gate.refusal({"eval_loss": 1.31}, {"eval_loss": 1.30}) is None
        True
        >>> gate.refusal({"eval_loss": 1.40}, {"eval_loss": 1.30})
        'eval_loss is 1.4, and 1.32 at most would hold against the 1.3 in service'
    """

    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_./-]{0,99}$")]
    """the metric's name, as in 'eval_loss', or one that metrics() returns"""
    better: Literal["lower", "higher"]
    """which way it improves"""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """how much worse than the one in service it may be, in the metric's unit"""
    limit: float | None = None
    """what it must reach in any case, also where nothing is in service yet"""

    def refusal(self, candidate: Mapping[str, float], served: Mapping[str, float] | None) -> str | None:
        """Why the candidate does not hold; ``None`` if it does.

        Args:
            candidate: The new adapter's metrics.
            served: Those of the one in service, on the same rows; ``None`` if nothing is in service.
        """
        got = candidate.get(self.metric)
        if got is None or not math.isfinite(got):
            told = ", ".join(sorted(candidate)) or "none"
            return f"{self.metric} is {'missing' if got is None else got}; the metrics that were told: {told}"
        sign, word = (1, "at most") if self.better == "lower" else (-1, "at least")
        if self.limit is not None and sign * got > sign * self.limit:
            return f"{self.metric} is {got:.6g}, and {self.limit:.6g} {word} is declared"
        before = served.get(self.metric) if served is not None else None
        if before is None:
            return None if served is None else f"{self.metric} of the one in service is missing"
        bar = before + sign * self.tolerance
        if not math.isnan(before) and sign * got > sign * bar:
            return f"{self.metric} is {got:.6g}, and {bar:.6g} {word} would hold against the {before:.6g} in service"
        return None


class MlflowTracking(Spec):
    """Parameters, metrics and the report on an MLflow tracking server; a resumed run goes on as the same run.

    Examples:
        >>> MlflowTracking(experiment="nightly", secret=SecretSpec(name="mlflow-credentials")).kind
        'mlflow'
    """

    kind: Literal["mlflow"] = "mlflow"
    experiment: Annotated[str, Field(pattern=_NAME)] = "gpuserve"
    """the experiment's name"""
    uri: Annotated[str | None, Field(pattern=r"^(https?|file|sqlite)://?.{0,500}$")] = None
    """the tracking server; MLFLOW_TRACKING_URI of the secret or the environment unless given"""
    secret: SecretSpec | None = None
    """the secret with MLFLOW_TRACKING_URI and what the server asks for"""

    @field_validator("uri")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and "@" in value.partition("//")[2].partition("/")[0]:
            raise ValueError("holds a password; put MLFLOW_TRACKING_USERNAME and _PASSWORD into the secret")
        return value


class WandbTracking(Spec):
    """The same on Weights & Biases; ``offline`` writes files that ``wandb sync`` uploads.

    Examples:
        >>> WandbTracking(project="support-bot", offline=True).offline
        True
    """

    kind: Literal["wandb"] = "wandb"
    project: Annotated[str, Field(pattern=_NAME)] = "gpuserve"
    """the project's name"""
    entity: Annotated[str | None, Field(pattern=_NAME)] = None
    """the team or user; the key's own unless given"""
    offline: bool = False
    """whether everything stays in the run's folder of the volume"""
    secret: SecretSpec | None = None
    """the secret with WANDB_API_KEY; needed unless offline"""


AnyTracking = Annotated[MlflowTracking | WandbTracking, Field(discriminator="kind")]
