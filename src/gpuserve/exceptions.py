"""Every error that gpuserve raises on purpose, in one tree.

```
GpuserveError
├── DeclarationError        a builder or spec was declared wrongly; lists every fault at once
├── RegistrationError       a class cannot be registered on an app
├── RequestError            a request was refused; carries an HTTP status and a stable code
│   ├── QueueFullError      the server's bounded queue is full
│   └── DeadlineError       the request's deadline passed before it was answered
├── BatchError              `predict` broke its contract (wrong number of answers)
└── EngineError             the local engine could not do what was asked
    ├── StateError          the state folder cannot be used as it is
    ├── ImageMismatchError  an image asks for packages that this interpreter does not have
    └── PortInUseError      another process listens where the engine was told to
```

Each survives pickling, because Modal sends exceptions across processes.
"""

from __future__ import annotations

__all__ = [
    "BatchError",
    "DeadlineError",
    "DeclarationError",
    "EngineError",
    "GpuserveError",
    "ImageMismatchError",
    "PortInUseError",
    "QueueFullError",
    "RegistrationError",
    "RequestError",
    "StateError",
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


class BatchError(GpuserveError):
    """A batched method broke its contract, e.g. answered 3 items with 2 values."""


class EngineError(GpuserveError):
    """The local engine could not do what was asked."""


class StateError(EngineError):
    """The state folder is unwritable, damaged, newer than this release, or in use."""


class ImageMismatchError(EngineError):
    """An image asks for other packages than this interpreter has (host mode)."""


class PortInUseError(EngineError):
    """Another process listens where the engine was told to."""
