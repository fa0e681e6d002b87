"""A served model in its process: started once, one thread for the model, one queue a method."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from gpuserve.exceptions import EngineError, GpuserveError, RequestError
from gpuserve.runtime.adapters import Adapters
from gpuserve.runtime.batcher import Batcher, BatchRecord
from gpuserve.runtime.start import StartLimits, StartReport, seconds_since_process_start
from gpuserve.runtime.telemetry.outlet import Outlet
from gpuserve.runtime.telemetry.record import RequestRecord
from gpuserve.specs.batching import Batching
from gpuserve.specs.secret import SecretSpec

if TYPE_CHECKING:
    from gpuserve.runtime.weights.snapshot import Verification

__all__ = ["MissingSecretError", "ModelHooks", "ServerRuntime", "require_runtime", "settle"]


class MissingSecretError(GpuserveError, LookupError):
    """A secret does not bring a key that the server needs; the message names both."""


class ModelHooks(Protocol):
    """What the runtime calls on a user's server."""

    def load(self) -> None:
        """Load the model."""

    def to_device(self) -> None:
        """Move it to the device."""

    def warm_up(self) -> None:
        """Run it once."""

    def unload(self) -> None:
        """Leave in order."""

    def cost(self, item: Any) -> float:
        """What an item adds to a batch."""


BatchFunction = Callable[[list[Any]], Sequence[Any]]
StreamFunction = Callable[[Any], Generator[Any]]
_END = object()


def input_adapter(annotation: Any) -> TypeAdapter[Any]:
    """What checks items of this annotation: pydantic's rules, strictly; isinstance where it has none."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)  # a model, which has a configuration of its own


class ServerRuntime:
    """Runs one server: its hooks in order, then its batched methods.

    Args:
        server: The user's instance.
        methods: Its batched methods, by name, bound.
        streams: Its streaming methods, by name, bound.
        inputs: The annotation of one item of each.
        executor: Where the model's methods run: a thread of their own unless given, so that the loop stays free.
        outlet: Told what happened, e.g. what the start was made of; nobody is unless given.
        weights: Opens each snapshot that the server loads from, by name.
        limits: What was declared about starts; nothing is advised without.
        kept_in_memory: Whether a memory snapshot is taken after `load`, so that all must be verified by then.
        adapters: Those that requests may name; none by default.
        mixed_adapters: Whether one batch may hold items of several.
    """

    def __init__(
        self,
        server: ModelHooks,
        *,
        name: str,
        methods: Mapping[str, BatchFunction],
        inputs: Mapping[str, Any],
        batching: Batching,
        streams: Mapping[str, StreamFunction] | None = None,
        secrets: Iterable[SecretSpec] = (),
        executor: Executor | None = None,
        outlet: Outlet | None = None,
        weights: Mapping[str, Callable[[], Verification]] | None = None,
        limits: StartLimits | None = None,
        kept_in_memory: bool = False,
        adapters: Adapters | None = None,
        mixed_adapters: bool = False,
    ) -> None:
        self.name = name
        self._on_event = outlet.event if outlet is not None else _ignore
        self.ready = self.draining = False
        self.started_in_s: dict[str, float] = {}
        self.weights_paths: dict[str, Path] = {}
        self._weights = dict(weights or {})
        self._verifying: tuple[Verification, ...] = ()
        self._waited_s = 0.0
        self._limits = limits
        self._kept_in_memory = kept_in_memory
        self._server = server
        self._secrets = tuple(secrets)
        self._is_process = executor is None  # the container's whole work, and not a part of somebody's script
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="gpuserve-model")
        self._streams = dict(streams or {})
        self.batch_observers: list[Callable[[str, BatchRecord], None]] = []
        self.request_observers: list[Callable[[RequestRecord], None]] = []
        self.on_cut_off: list[Callable[[], None]] = []
        if outlet is not None:
            self.batch_observers += outlet.batch_observers
            self.request_observers += outlet.observers
        self._outlet = outlet
        self._inputs = dict(inputs)
        self._checks = {method: input_adapter(annotation) for method, annotation in inputs.items()}
        self._methods, self._batching = dict(methods), batching
        self._adapters, self._mixed = adapters, mixed_adapters
        # one queue a method; where a batch is to share an adapter, one a method and adapter
        self._batchers: dict[tuple[str, str | None], Batcher[Any, Any]] = {}
        for method in methods:
            self._batcher(method, None)

    async def load(self) -> None:
        """Check the secrets, then load; what a memory snapshot may hold.

        Raises:
            MissingSecretError: If a secret lacks a key that was declared.
            WeightsError: If weights are not there, or not to be trusted.
        """
        is_container = os.environ.get("MODAL_IS_REMOTE") == "1"
        age = seconds_since_process_start() if is_container and not self._kept_in_memory else None
        if age is not None:
            self.started_in_s["import"] = round(age, 3)
        for secret in self._secrets:
            missing = [key for key in secret.required_keys if not os.environ.get(key)]
            if missing:
                self._on_event({"event": "start_failed", "server": self.name, "part": "secrets", "missing": missing})
                raise MissingSecretError(
                    f"the secret {secret.name!r} does not bring {', '.join(missing)}; "
                    f"run: modal secret create {secret.name} {' '.join(f'{key}=…' for key in missing)} --force"
                )
        if self._weights:
            await self._timed("open_weights", self._open_weights)
        await self._timed("load", self._server.load)
        if self._kept_in_memory:
            await self._verified()

    async def make_ready(self) -> None:
        """Move to the device and warm up; then serve, if every byte of the weights was right.

        Raises:
            WeightsError: If one was not.
        """
        await self._timed("to_device", self._server.to_device)
        await self._timed("warm_up", self._server.warm_up)
        await self._verified()
        self.ready = True
        spent = dict(self.started_in_s)
        report = StartReport(spent, spent.pop("verify", None), self._waited_s)
        self._on_event(report.event(self.name))
        for text in report.warnings(self._limits) if self._limits is not None else ():
            self._on_event({"event": "warning", "server": self.name, "message": text})

    def _open_weights(self) -> None:
        """Find the snapshots; from here on their bytes are checked beside whatever the server does."""
        opened = {name: begin() for name, begin in self._weights.items()}
        self.weights_paths = {name: one.snapshot.path for name, one in opened.items()}
        self._verifying = tuple(dict.fromkeys(opened.values()))

    async def _verified(self) -> None:
        """Wait for the check of the weights; the first fault ends the start."""
        begun = time.monotonic()
        waiting, self._verifying = self._verifying, ()
        for one in waiting:
            try:
                await self._call(one.wait)
            except Exception as error:
                event = {"event": "start_failed", "server": self.name, "part": "weights", "error": repr(error)[:500]}
                self._on_event(event)
                raise
        if waiting:
            self.started_in_s["verify"] = round(max(one.seconds for one in waiting), 3)
            self._waited_s += time.monotonic() - begun

    def drain(self) -> None:
        """Be ready no more: what came is answered, what comes is told to go elsewhere."""
        self.ready, self.draining = False, True
        self._on_event({"event": "draining", "server": self.name})

    def cut_off(self) -> None:
        """Time is up for what came before `drain`: whoever waits still is told that the server leaves."""
        for tell in self.on_cut_off:
            tell()

    async def stop(self) -> None:
        """Answer what waits, then unload."""
        self.ready = False
        await asyncio.gather(*(batcher.aclose() for batcher in self._batchers.values()))
        await self._call(self._server.unload)
        if self._is_process:
            self._executor.shutdown(wait=True)
        self._on_event({"event": "stopped", "server": self.name})
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close)

    async def submit(self, method: str, item: Any, *, key: str = "", timeout_s: float | None = None) -> Any:
        """Answer one item."""
        return await self.submit_checked(method, self._check(method, item), key=key, timeout_s=timeout_s)

    async def submit_checked(self, method: str, checked: Any, *, key: str = "", timeout_s: float | None = None) -> Any:
        """Answer one item that was validated already."""
        batcher = self._batcher(method, self._adapter_for(checked))
        return await batcher.submit(checked, key=key, timeout_s=timeout_s)

    @property
    def batched(self) -> tuple[str, ...]:
        """The names of the batched methods."""
        return tuple(self._methods)

    @property
    def streaming(self) -> tuple[str, ...]:
        """The names of the streaming methods."""
        return tuple(self._streams)

    def stream(self, method: str, item: Any) -> AsyncGenerator[Any]:
        """The pieces of an answer; each is made in the model's thread, which runs batches between them.

        Closing it closes the user's generator.

        Raises:
            RequestError: If the item is not of the method's type, or names an adapter that there is not.
        """
        checked = self._check(method, item)
        return self._pieces(self._streams[method](checked), self._adapter_for(checked))

    async def _pieces(self, pieces: Generator[Any, None, None], adapter: str | None) -> AsyncGenerator[Any]:
        # between two pieces the model may have run with another
        following = next if self._mixed else self._adapted(next, adapter)
        try:
            while (piece := await self._call(following, pieces, _END)) is not _END:
                yield piece
        finally:
            # given to the thread at once: whoever leaves may be cancelled again while the last piece is being made
            closed = self._executor.submit(pieces.close)
            await asyncio.shield(asyncio.wrap_future(closed))

    def annotation(self, method: str) -> Any:
        """The type of one item of a method."""
        return self._inputs[method]

    async def submit_many(self, method: str, items: Sequence[Any], *, key: str = "") -> list[Any]:
        """Answer items in their order."""
        checked = [self._check(method, item, place) for place, item in enumerate(items)]
        if self._adapters is None or self._mixed:
            return await self._batcher(method, None).submit_many(checked, key=key)
        places: dict[str | None, list[int]] = {}
        for place, item in enumerate(checked):
            places.setdefault(self._adapter_for(item), []).append(place)
        groups = [
            self._batcher(method, name).submit_many([checked[place] for place in of], key=key)
            for name, of in places.items()
        ]
        found: dict[int, Any] = {}
        for of, answers in zip(places.values(), await asyncio.gather(*groups), strict=True):
            found.update(zip(of, answers, strict=True))
        return [found[place] for place in range(len(checked))]

    def _check(self, method: str, item: Any, place: int | None = None) -> Any:
        try:
            return self._checks[method].validate_python(item)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            at = "" if place is None else f" {place}"
            raise RequestError(
                f"item{at} of {self.name}.{method}{f' at {where}' if where else ''}: {first['msg']}; "
                f"got {type(first['input']).__name__}",
                code="invalid_input",
                status=422,
            ) from None

    def waiting(self, method: str) -> int:
        """Items that wait in a method's queue."""
        return sum(len(batcher) for (name, _adapter), batcher in self._batchers.items() if name == method)

    def _adapter_for(self, item: Any) -> str | None:
        """The adapter whose queue an item belongs to; an unknown one is refused."""
        name = self._adapters.asked_by(item) if self._adapters is not None else None
        return None if self._mixed else name

    def _batcher(self, method: str, adapter: str | None) -> Batcher[Any, Any]:
        known = self._batchers.get((method, adapter))
        if known is None:
            run = self._runner(self._adapted(self._methods[method], adapter))
            known = Batcher(run, self._batching, self._server.cost, self._recorder(method))
            self._batchers[method, adapter] = known
        return known

    def _adapted(self, function: Callable[..., Any], adapter: str | None) -> Callable[..., Any]:
        if self._adapters is None:
            return function
        if self._mixed:
            return functools.partial(self._adapters.run_mixed, function)
        return functools.partial(self._adapters.run_with, adapter, function)

    def _recorder(self, method: str) -> Callable[[BatchRecord], None]:
        def told(record: BatchRecord) -> None:
            for tell in self.batch_observers:
                tell(method, record)
            if record.failed and record.size == 1:
                event = {"event": "item_failed", "server": self.name, "method": method, "error": record.fault}
                self._on_event(event)

        return told

    def _runner(self, function: BatchFunction) -> Callable[[list[Any]], Any]:
        async def run(batch: list[Any]) -> Sequence[Any]:
            answers: Sequence[Any] = await self._call(function, batch)
            return answers

        return run

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _timed(self, part: str, hook: Callable[[], None]) -> None:
        begun = time.monotonic()
        try:
            await self._call(hook)
        except Exception as error:
            await self._verified()  # of a hook that failed on damaged weights, the damage is what to tell
            self._on_event({"event": "start_failed", "server": self.name, "part": part, "error": repr(error)[:500]})
            raise
        self.started_in_s[part] = round(time.monotonic() - begun, 3)


def _ignore(_event: dict[str, Any]) -> None:
    """Nobody reads the log of a server in one's own process."""


def settle() -> None:
    """Take what the start has made out of the garbage collector's rounds, at the end of a container's start.

    It is there to stay, and going through it again and again holds every request up: for 50 ms at a time, as measured
    with a no-op model.
    """
    gc.collect()
    gc.freeze()


def require_runtime(runtime: ServerRuntime | None, name: str) -> ServerRuntime:
    """The runtime of a started server.

    Raises:
        EngineError: If the server was not started by a container or by `.local()`.
    """
    if runtime is None:
        raise EngineError(f"{name} is not started; call it through a registered class, or with {name}.local()")
    return runtime
