"""`FineTuneJob`: a model tuned on rows, in attempts that lose nothing, and served only if it is no worse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpuserve.builders.weights import VolumeWeightsCache
from gpuserve.exceptions import DeclarationError, RegistrationError, WeightsNotFoundError
from gpuserve.specs.budget import Budget
from gpuserve.specs.dataset import FileDataset, HubDataset, VolumeDataset
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.source import AliasSource, FolderSource, HubSource, VolumeSource
from gpuserve.specs.training import TrainingDeclaration
from gpuserve.specs.tuning import Gate, Lora, MlflowTracking, WandbTracking

if TYPE_CHECKING:
    from gpuserve.runtime.training.report import TrainingReport
    from gpuserve.runtime.training.run import Attempt

__all__ = ["FineTuneJob", "attempt_at", "training_declaration_of"]

_FIELDS = frozenset(TrainingDeclaration.model_fields)
# What a registered job has beside its own: a subclass that takes these names would break it.
_RESERVED = ("train", "local", "remote", "spawn", "run", "with_options", "adapter")


class FineTuneJob:
    """Tune a model with TRL and PEFT: supervised, with LoRA or QLoRA.

    Subclass it and say what it learns from; `gpuserve.register` puts it on an app, and ``Tune().train.remote(run=…)``
    runs it. A run has a name, and goes on where it was whenever it is asked for again: after a kill, a preemption, a
    time-out. Its checkpoints are whole or not there. What comes out is an adapter in a `VolumeWeightsCache`, in service
    under the job's name only if its gates hold against the one that is.

    Attributes:
        base: The model: a `HubSource`, `FolderSource` or `VolumeSource`, or a `VolumeWeightsCache` of one.
        dataset: A `FileDataset`, `VolumeDataset` or `HubDataset`; or override `rows`.
        evaluation: The same, or the fraction of the rows that is kept back; or override `evaluation_rows`.
        name: What the adapter and its alias are called; the class's name in small letters unless given.
        lora: The adapter's size, and whether the base is held in 4 bits.
        loss: What is learnt: ``completion``, ``assistant`` or ``all``; by the rows' form unless given.
        chat_template: A Jinja template, where the tokenizer has none.
        precision: ``auto`` is bf16 where the device has it; fp16 is refused.
        epochs: Times that all rows are seen; ``steps`` goes before it.
        checkpoint_every: Steps between checkpoints, the most that a kill costs.
        gate: A `Gate`, or several, that must hold for a promotion.
        tracking: `MlflowTracking`, `WandbTracking`, or both.
        trainer: Handed on to ``trl.SFTConfig`` as it is.
        timeout_s: Seconds of one attempt; a longer training is a chain of them.
        modal: Handed on to ``modal.App.cls`` as it is.

    Raises:
        DeclarationError: When the subclass is defined, with every fault of its declaration.

    Examples:
        >>> import gpuserve
        >>> class Tune(gpuserve.FineTuneJob):
        ...     base = gpuserve.HubSource("org/model", revision="0" * 40)
        ...     dataset = gpuserve.HubDataset("your-org/daily-feedback", revision="1" * 40)
        ...     evaluation = 0.1
        ...     lora = gpuserve.Lora(rank=16, target_modules=("q_proj", "v_proj"))
        ...     gate = gpuserve.Gate(metric="eval_loss", better="lower", tolerance=0.01)
        ...     gpu = "A100-80GB"
        >>> try:
        ...     class Wrong(gpuserve.FineTuneJob):
        ...         base = gpuserve.HubSource("org/model", revision="0" * 40)
        ...         precision = "fp16"
        ...         batch_size = 0
        ... except gpuserve.DeclarationError as error:
        ...     print([fault.partition(" ")[0] for fault in error.faults])
        ['precision', 'batch_size', 'dataset']
    """

    name: ClassVar[str] = ""
    image: ClassVar[ImageSpec | None] = None
    gpu: ClassVar[str | Sequence[str] | None] = None
    base: ClassVar[HubSource | FolderSource | VolumeSource | VolumeWeightsCache | None] = None
    dataset: ClassVar[FileDataset | VolumeDataset | HubDataset | None] = None
    evaluation: ClassVar[FileDataset | VolumeDataset | HubDataset | float | None] = None
    chat_template: ClassVar[str | None] = None
    loss: ClassVar[str] = "auto"
    lora: ClassVar[Lora] = Lora()
    precision: ClassVar[str] = "auto"
    seed: ClassVar[int] = 42
    epochs: ClassVar[float] = 1.0
    steps: ClassVar[int | None] = None
    batch_size: ClassVar[int] = 4
    gradient_accumulation: ClassVar[int] = 1
    learning_rate: ClassVar[float] = 2e-4
    schedule: ClassVar[str] = "cosine"
    warmup_steps: ClassVar[int] = 0
    weight_decay: ClassVar[float] = 0.0
    max_grad_norm: ClassVar[float] = 1.0
    max_length: ClassVar[int] = 1024
    packing: ClassVar[bool] = False
    checkpoint_every: ClassVar[int] = 100
    keep_checkpoints: ClassVar[int] = 2
    evaluate_every: ClassVar[int | None] = None
    log_every: ClassVar[int] = 10
    runs_volume: ClassVar[str] = "gpuserve-training"
    adapters_volume: ClassVar[str] = "gpuserve-adapters"
    gate: ClassVar[Gate | Sequence[Gate]] = ()
    tracking: ClassVar[MlflowTracking | WandbTracking | Sequence[MlflowTracking | WandbTracking]] = ()
    trainer: ClassVar[Mapping[str, Any]] = {}
    secrets: ClassVar[tuple[Any, ...]] = ()
    timeout_s: ClassVar[int] = 6 * 3600
    stop_before_s: ClassVar[int] = 120
    max_attempts: ClassVar[int] = 50
    retries: ClassVar[int] = 3
    cpu: ClassVar[float | None] = None
    memory_mib: ClassVar[int | None] = None
    ephemeral_disk_mib: ClassVar[int | None] = None
    env: ClassVar[Mapping[str, str]] = {}
    volumes: ClassVar[Mapping[str, Any]] = {}
    cloud: ClassVar[str | None] = None
    region: ClassVar[str | tuple[str, ...] | None] = None
    budget: ClassVar[Budget | None] = None
    modal: ClassVar[Mapping[str, Any]] = {}

    run: str = ""
    """The name of the run that is being worked on, for `rows` that depend on it, as of a day."""

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """Rows to learn from: the declared dataset's, unless overridden; the same ones in each attempt at a run.

        Each is ``{"text": …}``, ``{"prompt": …, "completion": …}`` or ``{"messages": [{"role", "content"}, …]}``.

        Raises:
            DatasetError: If the dataset cannot be read.
        """
        from gpuserve.runtime.training.rows import read_rows

        return read_rows(self._declared().dataset or FileDataset("/nowhere.jsonl"))

    def evaluation_rows(self) -> Iterable[Mapping[str, Any]] | None:
        """Rows to evaluate on, where ``evaluation`` does not say; none unless overridden."""
        return None

    def metrics(self, model: Any, tokenizer: Any) -> Mapping[str, float]:  # noqa: ARG002 (overridden with them)
        """Metrics of your own, measured at the end, also with the adapter in service; none unless overridden."""
        return {}

    @classmethod
    def local(
        cls, run: str, *, root: Path | None = None, on_event: Callable[[Mapping[str, Any]], None] | None = None
    ) -> TrainingReport:
        """Train in this process, without engine or container, where a debugger works; no time-out ends it.

        Args:
            run: The run's name; the same one goes on where it was.
            root: The folder of runs and adapters; below ``GPUSERVE_HOME`` unless given.
            on_event: Told of progress, instead of lines on standard output.

        Raises:
            DivergedError: If the loss or the gradient is no number.
            TrainingError: If it cannot begin or go on.
        """
        attempt = attempt_at(cls(), run, root=root, timeout_s=float("inf"))
        if on_event is not None:
            attempt.say = on_event
        return attempt.work().raised()

    @classmethod
    def adapter(cls) -> VolumeWeightsCache:
        """The cache of whatever adapter is in service under the job's name: ``adapters = {"bot": Tune.adapter()}``.

        Examples:
            >>> import gpuserve
            >>> class Bot(gpuserve.FineTuneJob):
            ...     base = gpuserve.HubSource("org/model", revision="0" * 40)
            ...     dataset = gpuserve.FileDataset("/root/rows.jsonl")
            >>> str(Bot.adapter().source)
            'the served alias bot'
        """
        declaration = training_declaration_of(cls)
        return VolumeWeightsCache(source=AliasSource(declaration.name), volume=declaration.adapters_volume)

    @property
    def train(self) -> Any:
        """A run in a container, once the class is registered: ``Tune().train.remote(run="2026-11-25")``.

        Raises:
            RegistrationError: If it is not.
        """
        raise RegistrationError(
            f"{type(self).__name__} is on no app; write @gpuserve.register(app) above it, or train in this process: "
            f"{type(self).__name__}.local('RUN')"
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        taken = [name for name in _RESERVED if name in vars(cls)]
        faults = [f"{name} is a name that a registered job has itself; rename yours" for name in taken]
        try:
            training_declaration_of(cls)
        except DeclarationError as error:
            faults += error.faults
        faults += _row_faults(cls)
        if faults:
            raise DeclarationError(cls.__qualname__, tuple(faults))

    def _declared(self) -> TrainingDeclaration:
        return training_declaration_of(type(self))


def _row_faults(cls: type[FineTuneJob]) -> list[str]:
    """What no field can tell alone: whether there are rows, and something for the gates to measure."""
    faults = []
    has_rows = cls.rows is not FineTuneJob.rows
    if cls.dataset is None and not has_rows:
        faults.append("dataset is missing; write dataset = gpuserve.FileDataset('/root/rows.jsonl'), or def rows(self)")
    if cls.dataset is not None and has_rows:
        faults.append("dataset is declared and rows() is overridden too; leave one")
    evaluates = cls.evaluation is not None or cls.evaluation_rows is not FineTuneJob.evaluation_rows
    gates = cls.gate if isinstance(cls.gate, Sequence) else (cls.gate,)
    faults += [
        f"gate asks for {gate.metric}, and nothing is evaluated; write evaluation = 0.1, or a dataset"
        for gate in gates
        if isinstance(gate, Gate) and gate.metric.startswith("eval_") and not evaluates
    ]
    return faults


def training_declaration_of(cls: type[FineTuneJob], overrides: Mapping[str, Any] | None = None) -> TrainingDeclaration:
    """What a job's class declares, with *overrides* put over it.

    Raises:
        DeclarationError: With every fault.
    """
    given = {name: getattr(cls, name) for name in _FIELDS if hasattr(cls, name)}
    given["name"] = cls.name or cls.__name__.lower()
    if given["base"] is None:
        del given["base"]
    unknown = sorted(set(overrides or {}) - _FIELDS)
    if unknown:
        raise DeclarationError(cls.__qualname__, tuple(f"{name} is not a field of FineTuneJob" for name in unknown))
    try:
        return TrainingDeclaration(**{**given, **(overrides or {})})
    except DeclarationError as error:
        raise DeclarationError(cls.__qualname__, error.faults) from None


def attempt_at(job: FineTuneJob, run: str, *, timeout_s: float, root: Path | None = None) -> Attempt:
    """One attempt at a run of *job*, here: in a container, or in this process."""
    from gpuserve.runtime.ports import ModalVolume, PlainFolder
    from gpuserve.runtime.training.run import Attempt, Places
    from gpuserve.runtime.weights.store import WeightsStore

    declaration = job._declared()
    job.run = run
    is_remote = root is None and os.environ.get("MODAL_IS_REMOTE") == "1"
    home = Path(os.environ.get("GPUSERVE_HOME") or Path.home() / ".gpuserve")
    if is_remote:
        runs, adapters = Path(declaration.runs_path), Path(declaration.adapters_path)
    else:
        runs = (root / "runs") if root is not None else home / "training" / declaration.runs_volume
        adapters = (root / "adapters") if root is not None else home / "weights" / declaration.adapters_volume
    base = declaration.base
    cache = base if isinstance(base, VolumeWeightsCache) else VolumeWeightsCache(source=base.source, volume=base.volume)

    def verified() -> Path:
        place = root / "base" if root is not None else None
        try:
            return cache.path(root=place)
        except WeightsNotFoundError:
            cache.fetch(root=place)
            return cache.path(root=place)

    places = Places(
        runs=runs,
        runs_volume=ModalVolume(declaration.runs_volume) if is_remote else PlainFolder(),
        adapters=WeightsStore(adapters),
        adapters_volume=ModalVolume(declaration.adapters_volume) if is_remote else PlainFolder(),
        base=verified,
    )
    return Attempt(job, declaration, run, places, timeout_s=timeout_s)
