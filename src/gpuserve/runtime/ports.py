"""Modal's storage, as the runtime uses it: the one file of the runtime that calls modal."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import modal

from gpuserve.exceptions import BatchRunError, QueueFullError
from gpuserve.runtime.batch.target import TargetError, checked_answers
from gpuserve.runtime.batch.trials import Failure, FailureKind

__all__ = [
    "CallPort",
    "DictEntries",
    "KeyEntries",
    "KeyPort",
    "LeaseEntries",
    "ModalCalls",
    "ModalFunctionTarget",
    "ModalVolume",
    "PlainFolder",
    "SharedFence",
    "VolumePort",
    "call_result",
    "copied_from_volume",
    "is_in_volume",
    "spawned",
]

Value = TypeVar("Value")


class VolumePort(Protocol):
    """What a fetch and a reader need of a volume."""

    def commit(self) -> None:
        """Make what was written visible to other containers."""

    def reload(self) -> None:
        """See what others committed."""


class ModalVolume:
    """A Modal Volume that is mounted in this container."""

    def __init__(self, name: str) -> None:
        """Look it up by *name*, which costs nothing until it is used."""
        self._volume = modal.Volume.from_name(name)

    def commit(self) -> None:
        """Make what was written visible to other containers."""
        self._volume.commit()

    def reload(self) -> None:
        """See what others committed."""
        self._volume.reload()


class PlainFolder:
    """A folder of this machine, which everybody sees as it is."""

    def commit(self) -> None:
        """Nothing is left to do: every file was synced when it was written."""

    def reload(self) -> None:
        """Nothing is hidden."""


class DictEntries(Generic[Value]):
    """Entries of one kind in a ``modal.Dict``."""

    def __init__(self, name: str) -> None:
        """Use the dict of that *name*, made where there is none."""
        self._dict = modal.Dict.from_name(name, create_if_missing=True)

    def put_new(self, key: str, value: Value) -> bool:
        """Store unless there is something; whether it was stored."""
        return self._dict.put(key, value, skip_if_exists=True)

    def put(self, key: str, value: Value) -> None:
        """Store whatever there is."""
        self._dict.put(key, value)

    def get(self, key: str) -> Value | None:
        """What is stored."""
        found: Value | None = self._dict.get(key)
        return found

    def remove(self, key: str) -> None:
        """Take it away, if it is there."""
        self._dict.pop(key, None)

    def items(self) -> Iterator[tuple[str, Value]]:
        """Everything, in no order; what is written meanwhile may be in it or not."""
        yield from self._dict.items()

    def clear(self) -> None:
        """Take everything away."""
        self._dict.clear()


class LeaseEntries(DictEntries[tuple[str, float]]):
    """Entries of leases: who holds one, and until when."""


class KeyPort(Protocol):
    """Where keys are read again and again."""

    async def read(self) -> Mapping[str, str]:
        """The sha256 of every key, in hexadecimal digits, by its name."""


class KeyEntries:
    """Keys in a ``modal.Dict``."""

    def __init__(self, name: str) -> None:
        """Use the dict of that *name*, made where there is none."""
        self._dict = modal.Dict.from_name(name, create_if_missing=True)

    async def read(self) -> Mapping[str, str]:
        """All of its entries."""
        return {str(key): value async for key, value in self._dict.items.aio()}


# What Modal's client raises when nobody can tell what became of a call: the control plane was away, or forgot it.
_AWAY = (
    modal.exception.ConnectionError,
    modal.exception.ServiceError,
    modal.exception.NotFoundError,
    modal.exception.OutputExpiredError,
    modal.exception.ClientClosed,
    OSError,
)
# What it raises when the container did not live to answer.
_DIED = (modal.exception.FunctionTimeoutError, modal.exception.InternalFailure, modal.exception.RemoteError)


class ModalFunctionTarget:
    """A Modal function that answers a list, called through Modal's own client."""

    def __init__(
        self, function: Any, name: str, arguments: Mapping[str, Any], usd_per_container_hour: float | None
    ) -> None:
        """Call *function* with each batch, and with *arguments* by name."""
        self.name, self.usd_per_container_hour = name, usd_per_container_hour
        self._function, self._arguments = function, dict(arguments)

    async def call(self, batch: list[Any]) -> Sequence[Any]:
        """Answer each item, in order.

        Raises:
            TargetError: If there are no answers.
            BatchRunError: If there is no such function.
        """
        try:
            await self._find()
            answers = await self._function.remote.aio(batch, **self._arguments)
        except BatchRunError:
            raise
        except Exception as error:
            raise TargetError(_failure(error)) from error
        return checked_answers(batch, answers)

    async def _find(self) -> None:
        """Look the function up, where that was not done yet: one that is not there is nothing to wait for."""
        try:
            await self._function.hydrate.aio()
        except (modal.exception.NotFoundError, modal.exception.ExecutionError) as error:
            advice = "deploy its app, or run inside `with app.run():`; then run the same again"
            raise BatchRunError(f"target {self.name} cannot be called: {error}; {advice}") from error

    async def containers(self) -> int | None:
        """How many run now; ``None`` if Modal does not say."""
        try:
            found: int = (await self._function.get_current_stats.aio()).num_total_runners
        except Exception as error:
            if isinstance(error, modal.exception.Error) or _is_outage(error):
                return None
            raise
        return found


def _failure(error: Exception) -> Failure:
    if isinstance(error, QueueFullError):
        kind = FailureKind.BUSY
    elif _raised_in_a_container(error):  # a user's own OSError says nothing about the way there
        kind = FailureKind.RAISED
    elif isinstance(error, modal.exception.ResourceExhaustedError):
        kind = FailureKind.BUSY
    elif _is_outage(error):
        kind = FailureKind.LOST
    elif isinstance(error, _DIED):
        kind = FailureKind.DIED
    else:
        kind = FailureKind.RAISED
    return Failure(kind, type(error).__name__, str(error), "".join(traceback.format_exception(error)))


def _raised_in_a_container(error: Exception) -> bool:
    """Whether user code raised it: Modal's client then puts the container's id before each file of its traceback.

    Source: modal 1.6.4, ``modal._traceback.extract_traceback``.
    """
    return any(frame.filename.startswith("<ta-") for frame in traceback.extract_tb(error.__traceback__))


def _is_outage(error: Exception) -> bool:
    """Whether the control plane was away; modal's client lets some errors of the connection's own code through."""
    traces = list(traceback.walk_tb(error.__traceback__))
    where = traces[-1][0].f_globals.get("__name__", "") if traces else ""
    return isinstance(error, _AWAY) or where.partition(".")[0] in {"grpclib", "h2"}


class SharedFence:
    """The driver in force of one output, in a ``modal.Dict``."""

    def __init__(self, entries: LeaseEntries, key: str) -> None:
        """Use the entry *key*."""
        self._entries, self._key = entries, key

    def claim(self, owner: str) -> None:
        """Put this driver in."""
        self._entries.put(self._key, (owner, 0.0))

    def holder(self) -> str:
        """Who was put in last."""
        found = self._entries.get(self._key)
        return found[0] if found is not None else ""


def spawned(instance: Any, where: tuple[str, str], declared: Mapping[str, Any], retry: int | None) -> str:
    """Begin a mapper's driver: in the app that runs, else in the one that is deployed under that name.

    Raises:
        BatchRunError: If there is neither.
    """
    try:
        call = instance.drive.spawn(dict(declared), retry)
    except modal.exception.ExecutionError:  # the app of this process is not running
        try:
            call = modal.Cls.from_name(*where)().drive.spawn(dict(declared), retry)
        except modal.exception.NotFoundError as error:
            advice = "deploy its file, e.g. gpuserve local deploy FILE or modal deploy FILE"
            raise BatchRunError(f"the driver {'/'.join(where)} is not deployed: {error}; {advice}") from error
    return str(call.object_id)


def call_result(call_id: str, timeout_s: float | None) -> Any:
    """What a spawned call answered; ``None`` if it takes longer."""
    try:
        return modal.FunctionCall.from_id(call_id).get(timeout=timeout_s)
    except TimeoutError:
        return None


def copied_from_volume(volume: str, folder: str, names: Sequence[str], into: Path) -> bool:
    """Copy files of a volume, as far as they are there; whether the first one is."""
    source = modal.Volume.from_name(volume)
    for name in names:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = b"".join(source.read_file(f"{folder}/{name}"))
        except (FileNotFoundError, modal.exception.NotFoundError):
            continue
        target.write_bytes(data)
    return (into / names[0]).is_file()


def is_in_volume(volume: str, path: str) -> bool:
    """Whether the volume has a file of that path."""
    try:
        return bool(modal.Volume.from_name(volume).listdir(path))
    except (FileNotFoundError, modal.exception.NotFoundError):
        return False


class CallPort(Protocol):
    """What the clock of a job needs of function calls."""

    def current(self) -> str:
        """The call that this code runs for; empty outside a container."""

    def spawn(self, app: str, function: str, *arguments: object) -> str:
        """Start a deployed function and return its call's id."""

    def is_alive(self, call_id: str) -> bool:
        """Whether the call has no final result yet."""

    def cancel(self, call_id: str) -> None:
        """End the call; nothing happens if it has ended."""


class ModalCalls:
    """Modal's function calls."""

    def current(self) -> str:
        """The call that this code runs for; empty outside a container."""
        return modal.current_function_call_id() or ""

    def spawn(self, app: str, function: str, *arguments: object) -> str:
        """Start a deployed function and return its call's id."""
        call: modal.FunctionCall[object] = modal.Function.from_name(app, function).spawn(*arguments)
        return str(call.object_id)

    def is_alive(self, call_id: str) -> bool:
        """Whether the call has no final result yet; a call that nobody knows any more has ended."""
        if not call_id:
            return False
        try:
            modal.FunctionCall.from_id(call_id).get(timeout=0)
        except TimeoutError:
            return True
        except Exception:  # noqa: BLE001 (whatever the call raised: it has ended)
            return False
        return False

    def cancel(self, call_id: str) -> None:
        """End the call; nothing happens if it has ended."""
        try:
            modal.FunctionCall.from_id(call_id).cancel()
        except modal.exception.NotFoundError:
            return
