"""Every error that gpuserve raises on purpose, in one tree.

```
GpuserveError
├── DeclarationError        a builder or spec was declared wrongly; lists every fault at once
├── RegistrationError       a class cannot be registered on an app
├── RequestError            a request was refused; carries an HTTP status and a stable code
│   ├── QueueFullError      the server's bounded queue is full
│   └── DeadlineError       the request's deadline passed before it was answered
├── SecretError             a container was not given what a secret must bring
├── BatchError              `predict` broke its contract (wrong number of answers)
├── BatchRunError           a run of a BatchMapper cannot begin or go on; what is committed is whole
│   ├── BadInputError       a file or a row of the input cannot be used
│   ├── OutputMismatchError the output folder belongs to another run
│   ├── BatchBusyError      another driver is at work on the same output
│   ├── FencedError         another driver has taken the run over
│   └── AnswerError         an answer cannot be written in the declared format
├── JobError                a scheduled job cannot be run, or asked about, as it was
│   └── LeaseLostError      a run was taken for dead, and another took over
├── WeightsError            model weights cannot be fetched, trusted or found
│   ├── WeightsSourceError  where they come from refused, or is not there
│   │   └── GatedSourceError        ... until its terms are accepted, or without a token
│   ├── ChecksumMismatchError       a file is not what its digest says
│   ├── UnsafeWeightsError          pickles or code that nobody allowed by name
│   ├── WeightsCorruptError         a snapshot, a manifest or a header is damaged
│   ├── WeightsNotFoundError        nothing was published yet
│   └── DiskFullError               no room; what was there before is whole
├── TrainingError           a fine-tuning cannot begin, go on or be published
│   ├── DatasetError        rows that cannot be read or learnt from; lists them
│   └── DivergedError       the loss or the gradient is no number any more
├── PricesError             prices cannot be read, or are none
└── EngineError             the local engine could not do what was asked
    ├── StateError          the state folder cannot be used as it is
    ├── ImageMismatchError  an image asks for packages that this interpreter does not have
    └── PortInUseError      another process listens where the engine was told to
```

Each survives pickling, because Modal sends exceptions across processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = [
    "AnswerError",
    "BadInputError",
    "BatchBusyError",
    "BatchError",
    "BatchRunError",
    "ChecksumMismatchError",
    "DatasetError",
    "DeadlineError",
    "DeclarationError",
    "DiskFullError",
    "DivergedError",
    "EngineError",
    "FencedError",
    "GatedSourceError",
    "GpuserveError",
    "ImageMismatchError",
    "JobError",
    "LeaseLostError",
    "OutputMismatchError",
    "PortInUseError",
    "PricesError",
    "QueueFullError",
    "RegistrationError",
    "RequestError",
    "SecretError",
    "StateError",
    "TrainingError",
    "UnsafeWeightsError",
    "WeightsCorruptError",
    "WeightsError",
    "WeightsNotFoundError",
    "WeightsSourceError",
]


class GpuserveError(Exception):
    """Base of every error that gpuserve raises on purpose."""


class DeclarationError(GpuserveError, ValueError):
    """A declaration is wrong; the message lists every fault, one a line, with the way out.

    Attributes:
        faults: One sentence a fault: the field, what it got, what is allowed, what to write.
    """

    def __init__(self, subject: str, faults: tuple[str, ...]) -> None:
        """Build the message from *subject* and all its *faults*."""
        self.subject = subject
        self.faults = tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{subject} cannot be used as declared:\n{lines}")

    def __reduce__(self) -> tuple[type[DeclarationError], tuple[str, tuple[str, ...]]]:
        """Pickle by the two arguments, so that the error survives the wire."""
        return type(self), (self.subject, self.faults)


class RegistrationError(GpuserveError, TypeError):
    """A class cannot be registered on an app; the message says what to change."""


class RequestError(GpuserveError):
    """A request was refused.

    Attributes:
        code: A stable machine-readable word, e.g. ``queue_full``.
        status: The HTTP status that the same refusal has over HTTP.
        retry_after_s: Seconds to wait before another try, where that helps.
    """

    def __init__(
        self, message: str, code: str = "bad_request", status: int = 400, retry_after_s: float | None = None
    ) -> None:
        """Keep what both the RPC and the HTTP face need to answer."""
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str, int, float | None]]:
        """Pickle by all four fields."""
        return type(self), (self.message, self.code, self.status, self.retry_after_s)


class QueueFullError(RequestError):
    """The server's bounded queue is full; try again after ``retry_after_s``."""


class DeadlineError(RequestError):
    """The request's deadline passed before the model answered."""


class SecretError(GpuserveError):
    """A container was not given what a secret must bring.

    Attributes:
        missing: The keys that are missing or empty, by the name of their secret.
    """

    def __init__(self, missing: Mapping[str, Sequence[str]]) -> None:
        """Name each secret and its missing keys."""
        self.missing = {name: tuple(keys) for name, keys in missing.items()}
        told = "; ".join(
            f"the secret {name!r} brought no {' and no '.join(keys)}: modal secret create --force {name} "
            + " ".join(f"{key}=VALUE" for key in keys)
            for name, keys in self.missing.items()
        )
        super().__init__(f"{told} (with its other keys; containers that start after that have them)")

    def __reduce__(self) -> tuple[type[SecretError], tuple[dict[str, tuple[str, ...]]]]:
        """Pickle by what is missing."""
        return type(self), (self.missing,)


class BatchError(GpuserveError):
    """A batched method broke its contract, e.g. answered 3 items with 2 values."""


class BatchRunError(GpuserveError):
    """A run of a `BatchMapper` cannot begin or go on; what is committed is whole."""


class BadInputError(BatchRunError, ValueError):
    """Input that cannot be used, where that was declared to stop the run.

    Attributes:
        source: The file, or the name of what brings the items.
        where: The row or the byte.
        reason: What is wrong, and what to do.
    """

    def __init__(self, source: str, where: str, reason: str) -> None:
        """Name the place and the fault."""
        self.source, self.where, self.reason = source, where, reason
        super().__init__(f"{source}{f' {where}' if where else ''}: {reason}")

    def __reduce__(self) -> tuple[type[BadInputError], tuple[str, str, str]]:
        """Pickle by all three fields."""
        return type(self), (self.source, self.where, self.reason)


class OutputMismatchError(BatchRunError):
    """The output folder belongs to another run; the message says what differs, and how to go on."""


class BatchBusyError(BatchRunError):
    """Another driver is at work on the same output."""


class FencedError(BatchRunError):
    """Another driver has taken the run over while this one stood still; it must not commit, and has not."""


class AnswerError(BatchRunError):
    """An answer cannot be written in the declared format."""


class JobError(GpuserveError):
    """A scheduled job cannot be run, or asked about, as it was; the message says what can be."""


class LeaseLostError(JobError):
    """A run was taken for dead, and another run for the same time took over; this one must not go on."""


class WeightsError(GpuserveError):
    """Model weights cannot be fetched, trusted or found."""


class WeightsSourceError(WeightsError):
    """Where the weights come from refused, broke off, or does not have them."""


class GatedSourceError(WeightsSourceError):
    """The repository asks for accepted terms or for a token; the message says where and how."""


class ChecksumMismatchError(WeightsError):
    """A file's content is not the one that was promised.

    Attributes:
        file: The file, by its path in the repository.
        expected: The digest that it must have.
        got: The digest that it has.
    """

    def __init__(self, file: str, expected: str, got: str) -> None:
        """Name the file and both digests."""
        self.file, self.expected, self.got = file, expected, got
        super().__init__(
            f"{file} is not what was promised: expected {expected}, got {got}; "
            f"it is not used. Fetch again: gpuserve weights fetch"
        )

    def __reduce__(self) -> tuple[type[ChecksumMismatchError], tuple[str, str, str]]:
        """Pickle by all three fields."""
        return type(self), (self.file, self.expected, self.got)


class UnsafeWeightsError(WeightsError):
    """Files that can run code when they are loaded, and that nobody allowed by name.

    Attributes:
        files: Their paths in the repository.
        reason: Why they are refused, where their names alone do not say it.
        advice: What to do instead; by default, to convert them or to allow them by name.
    """

    def __init__(self, files: tuple[str, ...], reason: str = "", advice: str = "") -> None:
        """Name the files, what they are refused for and what to do instead."""
        self.files, self.reason, self.advice = tuple(files), reason, advice
        named = ", ".join(self.files)
        allowed = ", ".join(f'"{one}"' for one in self.files)
        super().__init__(
            f"{named} can run code when loaded{f' ({reason})' if reason else ''}. "
            + (
                advice
                or f"Convert to safetensors, take a repository that has them, or, if you trust every byte, "
                f"allow them by name: allow_unsafe=({allowed},)"
            )
        )

    def __reduce__(self) -> tuple[type[UnsafeWeightsError], tuple[tuple[str, ...], str, str]]:
        """Pickle by all three fields."""
        return type(self), (self.files, self.reason, self.advice)


class WeightsCorruptError(WeightsError):
    """A snapshot on disk is damaged: a file, its header or the manifest.

    Attributes:
        file: What is damaged.
        reason: How, with what was expected and what was found.
    """

    def __init__(self, file: str, reason: str) -> None:
        """Name what is damaged and how."""
        self.file, self.reason = file, reason
        super().__init__(f"{file} is damaged: {reason}. It is not used; fetch again: gpuserve weights fetch")

    def __reduce__(self) -> tuple[type[WeightsCorruptError], tuple[str, str]]:
        """Pickle by both fields."""
        return type(self), (self.file, self.reason)


class WeightsNotFoundError(WeightsError, LookupError):
    """Nothing was published under that name yet; the message says how to fetch it."""


class DiskFullError(WeightsError):
    """There is no room; what was there before is whole.

    Attributes:
        path: Where there is none.
        need: Bytes that are still to be written.
        free: Bytes that are free.
    """

    def __init__(self, path: str, need: int, free: int) -> None:
        """Name the place, what is needed and what is free."""
        self.path, self.need, self.free = path, need, free
        super().__init__(
            f"no room at {path}: {need:,} bytes are needed, {free:,} are free; "
            f"make room (gpuserve weights prune) or take a larger disk. What was published before is whole"
        )

    def __reduce__(self) -> tuple[type[DiskFullError], tuple[str, int, int]]:
        """Pickle by all three fields."""
        return type(self), (self.path, self.need, self.free)


class TrainingError(GpuserveError):
    """A fine-tuning cannot begin, go on or be published; the message says what to change."""


class DatasetError(TrainingError, ValueError):
    """Rows cannot be read, or there is nothing in them to learn from.

    Attributes:
        where: The dataset.
        faults: One sentence a row, the first of them.
    """

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        """Name the dataset, the rows and what is wrong with each."""
        self.where, self.faults = where, tuple(faults)
        lines = "\n".join(f"  - {fault}" for fault in self.faults)
        super().__init__(f"{where} cannot be trained on:\n{lines}")

    def __reduce__(self) -> tuple[type[DatasetError], tuple[str, tuple[str, ...]]]:
        """Pickle by both fields."""
        return type(self), (self.where, self.faults)


class DivergedError(TrainingError):
    """The loss or the gradient is NaN or infinite: training stopped before that step changed anything.

    Attributes:
        step: The step that could not be done, from 1.
        quantity: What is no number: ``loss``, ``grad_norm`` or ``weights``.
        kept: The step of the last good checkpoint, which is kept; ``None`` if there is none.
    """

    def __init__(self, step: int, quantity: str, kept: int | None = None) -> None:
        """Name the step, what is no number, and what is kept."""
        self.step, self.quantity, self.kept = step, quantity, kept
        last = f"the checkpoint of step {kept} is kept" if kept is not None else "there was no checkpoint yet"
        super().__init__(
            f"{quantity} is not finite at step {step}: training stopped before it changed the weights; {last}. "
            f"Lower learning_rate, raise warmup_steps, or look at the rows of that step; begin a new run"
        )

    def __reduce__(self) -> tuple[type[DivergedError], tuple[int, str, int | None]]:
        """Pickle by all three fields."""
        return type(self), (self.step, self.quantity, self.kept)


class PricesError(GpuserveError):
    """Prices cannot be asked for, or are no amounts of money; the message says what works instead."""


class EngineError(GpuserveError):
    """The local engine could not do what was asked."""


class StateError(EngineError):
    """The state folder is unwritable, damaged, newer than this release, or in use."""


class ImageMismatchError(EngineError):
    """An image asks for other packages than this interpreter has (host mode)."""


class PortInUseError(EngineError):
    """Another process listens where the engine was told to."""
