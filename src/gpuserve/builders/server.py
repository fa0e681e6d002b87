"""`WarmModelServer`: a model that is loaded once a container and answers in batches."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from gpuserve.builders.batched import batched
from gpuserve.builders.streaming import streaming
from gpuserve.builders.transport import http_only_faults, is_http_only
from gpuserve.builders.weights import VolumeWeightsCache
from gpuserve.exceptions import DeclarationError, EngineError
from gpuserve.runtime.server import ServerRuntime
from gpuserve.specs.batching import Batching
from gpuserve.specs.budget import Budget
from gpuserve.specs.http import Http
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.scaling import Scaling
from gpuserve.specs.server import ServerDeclaration
from gpuserve.specs.telemetry import Telemetry
from gpuserve.specs.variant import Variant, variant_faults

if TYPE_CHECKING:
    from fastapi import APIRouter

    from gpuserve.builders.local import LocalServer

__all__ = ["Marker", "WarmModelServer", "declaration_of", "item_annotation", "served_methods"]

Marker = batched[Any, Any, Any] | streaming[Any, Any, Any]
"""What stands on a class for a method that callers reach through the server."""

# What a registered class has beside its own: a subclass that takes these names would break it.
_RESERVED = ("local", "web", "url", "submit_many", "weights_path", "weights_paths", "with_options")


class WarmModelServer:
    """Serve a model: loaded once a container, called in batches, by RPC and by HTTP.

    Subclass it, say what it needs as class attributes, and write what it does as plain methods; then
    `gpuserve.register` makes a Modal class of it.

    Attributes:
        image: What the container is made from.
        gpu: As in ``"L4"`` or ``"H100:2"``; a sequence is tried in its order.
        weights: A `VolumeWeightsCache`, or several by name; mounted read-only, verified, and told to `load` as
            `weights_path`.
        adapters: Caches of adapters by the names that requests ask for, see `adapter_of`.
        max_loaded_adapters: How many of them stay loaded.
        mixed_adapters: Whether a batch may hold items of several; else each batch runs with one.
        scaling: How many containers, and how long idle ones stay.
        batching: How requests are gathered.
        http: The HTTP face; ``None`` for RPC alone.
        secrets: `SecretSpec` or ``modal.Secret`` objects.
        telemetry: What it tells of itself: a line a request and an event, traces, alerts.
        budget: The most that all its containers may cost an hour; more is refused.
        timeout_s: Seconds that one call may take.
        startup_timeout_s: Seconds that a start may take.
        variants: What differs in development, staging or production; ``GPUSERVE_VARIANT`` chooses.
        modal: Handed on to ``modal.App.cls`` as it is.

    Raises:
        DeclarationError: When the subclass is defined, with every fault of its declaration.

    Examples:
        >>> import gpuserve
        >>> class Doubler(gpuserve.WarmModelServer):
        ...     image = gpuserve.ImageSpec.debian("3.11")
        ...     scaling = gpuserve.Scaling(max_containers=4)
        ...
        ...     def load(self) -> None:
        ...         self.factor = 2
        ...
        ...     @gpuserve.batched
        ...     def predict(self, batch: list[int]) -> list[int]:
        ...         return [self.factor * number for number in batch]
        >>> with Doubler.local() as server:
        ...     list(server.predict.map([1, 2, 3]))
        [2, 4, 6]
    """

    image: ClassVar[ImageSpec | None] = None
    gpu: ClassVar[str | Sequence[str] | None] = None
    weights: ClassVar[VolumeWeightsCache | type[VolumeWeightsCache] | Mapping[str, VolumeWeightsCache] | None] = None
    adapters: ClassVar[Mapping[str, VolumeWeightsCache]] = {}
    max_loaded_adapters: ClassVar[int] = 8
    mixed_adapters: ClassVar[bool] = False
    scaling: ClassVar[Scaling] = Scaling()
    batching: ClassVar[Batching] = Batching()
    http: ClassVar[Http | None] = None
    secrets: ClassVar[tuple[Any, ...]] = ()
    telemetry: ClassVar[Telemetry] = Telemetry()
    timeout_s: ClassVar[int] = 300
    startup_timeout_s: ClassVar[int] = 600
    memory_snapshot: ClassVar[bool] = False
    retries: ClassVar[int] = 0
    cpu: ClassVar[float | None] = None
    memory_mib: ClassVar[int | None] = None
    ephemeral_disk_mib: ClassVar[int | None] = None
    env: ClassVar[Mapping[str, str]] = {}
    volumes: ClassVar[Mapping[str, Any]] = {}
    cloud: ClassVar[str | None] = None
    region: ClassVar[str | tuple[str, ...] | None] = None
    routing_region: ClassVar[str | None] = None
    proxy: ClassVar[Any] = None
    nonpreemptible: ClassVar[bool] = False
    max_parameter_sets: ClassVar[int] = 1
    budget: ClassVar[Budget | None] = None
    modal: ClassVar[Mapping[str, Any]] = {}
    variants: ClassVar[Mapping[str, Variant]] = {}

    _gpuserve_runtime: ServerRuntime | None = None
    _gpuserve_markers: ClassVar[dict[str, Marker]] = {}

    def load(self) -> None:
        """Load the model; called once a container, in the thread that the model runs in."""

    @property
    def weights_path(self) -> Path:
        """The folder of the server's weights, for `load`.

        Whatever could run code in it is verified, and so are the headers of the tensor files; the tensors' bytes are
        being verified meanwhile, and nothing is served before that is done.

        Raises:
            EngineError: If the server is not started, or has no weights, or several.
        """
        paths = self.weights_paths
        if len(paths) != 1:
            have = ", ".join(paths) or "none"
            raise EngineError(
                f"weights_path is for a server with one weights cache; there are: {have}; "
                f"write weights = …, or self.weights_paths['NAME']"
            )
        return next(iter(paths.values()))

    @property
    def weights_paths(self) -> Mapping[str, Path]:
        """The folders of several weights, by the names that they were declared under.

        Raises:
            EngineError: If the server is not started.
        """
        if self._gpuserve_runtime is None:
            raise EngineError(f"{type(self).__name__} is not started; its weights are there from load() on")
        return self._gpuserve_runtime.weights_paths

    def to_device(self) -> None:
        """Move the model to the device; after `load`, and again after a memory snapshot is restored."""

    def warm_up(self) -> None:
        """Run the model once, so that the first request does not pay for it."""

    def unload(self) -> None:
        """Leave in order; called once, when the container ends."""

    def cost(self, item: Any) -> float:  # noqa: ARG002 (overridden with it)
        """What *item* adds to a batch, e.g. its tokens; 1 unless overridden."""
        return 1.0

    def adapter_of(self, item: Any) -> str | None:
        """The adapter that *item* asks for: its field ``adapter``, unless overridden; ``None`` for the bare model."""
        name: str | None = item.get("adapter") if isinstance(item, dict) else getattr(item, "adapter", None)
        return name

    def load_adapter(self, name: str, path: Path) -> None:
        """Add the adapter in the verified folder *path* to the model, e.g. ``self.model.load_adapter(path, name)``.

        Raises:
            EngineError: Unless overridden.
        """
        raise EngineError(f"write def load_adapter(self, name, path) in {type(self).__name__}, to add {name} of {path}")

    def use_adapter(self, name: str | None) -> None:
        """Run with this adapter from now on, or with none, e.g. ``self.model.set_adapter(name)``.

        Not called where ``mixed_adapters`` is set.

        Raises:
            EngineError: Unless overridden.
        """
        raise EngineError(f"write def use_adapter(self, name) in {type(self).__name__}, to run with {name}")

    def unload_adapter(self, name: str) -> None:
        """Take it out of the model, e.g. ``self.model.delete_adapter(name)``; another needs its place."""

    @property
    def url(self) -> str | None:
        """Where the HTTP face of a registered class is: ``MyServer().url``; ``None`` if it has none.

        Raises:
            EngineError: On a server in this process or inside its container, which has no address of its own.
        """
        raise EngineError(
            f"{type(self).__name__} has no address here; ask the registered class: {type(self).__name__}().url"
        )

    def routes(self, router: APIRouter) -> None:
        """Add routes of your own beside ours; they are guarded as ours are."""

    @classmethod
    def local(cls, **parameters: Any) -> LocalServer[Self]:
        """Run the server in this process, without engine or container: ``with MyServer.local() as server``.

        The same checks and the same queue, in the caller's own thread, where a debugger works.
        """
        from gpuserve.builders.local import LocalServer

        return LocalServer(cls, parameters)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        faults = [*_name_faults(cls), *variant_faults(cls.variants)]
        try:
            declaration_of(cls)
        except DeclarationError as error:
            faults += error.faults
        else:
            faults += _overlay_faults(cls) if not faults else []
        if faults:
            raise DeclarationError(cls.__qualname__, tuple(faults))

    def _gpuserve_loaded(self) -> Self:
        """This instance, loaded in this process if it was not before."""
        if self._gpuserve_runtime is None:
            from gpuserve.builders.local import start_here
            from gpuserve.runtime.caller import CallerLoop

            start_here(self, CallerLoop())
        return self

    def _gpuserve_bind(self, marker: Marker) -> Any:
        from gpuserve.builders.local import bound

        return bound(self, marker)


def _overlay_faults(cls: type[WarmModelServer]) -> Iterator[str]:
    """What is wrong with the class in each of its variants."""
    for name, variant in cls.variants.items():
        try:
            declaration = declaration_of(cls, variant.overlay())
        except DeclarationError as error:
            yield from (f"variants[{name!r}]: {fault}" for fault in error.faults)
        else:
            if variant.domain is not None and declaration.http is None:
                yield f"variants[{name!r}]: domain got {variant.domain!r} without http; write http=gpuserve.Http(…)"
            elif variant.domain is not None and is_http_only(declaration.http):
                yield (
                    f"variants[{name!r}]: domain got {variant.domain!r}, which Modal's app.server does not take; "
                    f"write http=gpuserve.Http(transport='asgi', …)"
                )


def _name_faults(cls: type[WarmModelServer]) -> list[str]:
    faults: list[str] = []
    for name, value in vars(cls).items():
        if name in _RESERVED or name.startswith("_gpuserve"):
            faults.append(f"{name} is a name of gpuserve's own; call it something else")
        inherited = next((vars(base)[name] for base in cls.__mro__[1:] if name in vars(base)), None)
        if isinstance(inherited, batched | streaming) and not isinstance(value, type(inherited)):
            kind = type(inherited).__name__
            faults.append(f"{name} overrides a {kind} method and is not one; write @gpuserve.{kind} above it")
        if isinstance(value, batched | streaming):
            faults += _marker_faults(name, value, inherited)
    if "__init__" in vars(cls):
        faults.append("__init__ is defined; load the model in load(), and take values by modal.parameter()")
    return faults


def _marker_faults(name: str, marker: Marker, inherited: Any) -> list[str]:
    kind, function = type(marker).__name__, marker.function
    faults = []
    if inherited is not None and not isinstance(inherited, batched | streaming):
        faults.append(f"{name} is a hook of WarmModelServer, which cannot be {kind}; call it something else")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        faults.append(f"{name} is async; write a plain method, which runs in the model's own thread")
    elif isinstance(marker, streaming) and not inspect.isgeneratorfunction(function):
        faults.append(f"{name} yields nothing; write a generator, or @gpuserve.batched for one answer an item")
    elif isinstance(marker, batched) and inspect.isgeneratorfunction(function):
        faults.append(f"{name} yields; return a list with one answer an item, or write @gpuserve.streaming")
    return faults


def declaration_of(cls: type[WarmModelServer], overrides: Mapping[str, Any] | None = None) -> ServerDeclaration:
    """What a class declares, checked, with *overrides* put over it.

    Raises:
        DeclarationError: With every fault.
    """
    values = {**{name: getattr(cls, name) for name in ServerDeclaration.model_fields}, **(overrides or {})}
    faults = http_only_faults(cls, values)
    try:
        declaration = ServerDeclaration(**values)
    except DeclarationError as error:
        raise DeclarationError(cls.__qualname__, (*error.faults, *faults)) from None
    if faults:
        raise DeclarationError(cls.__qualname__, tuple(faults))
    return declaration


def served_methods(cls: type[WarmModelServer]) -> dict[str, Marker]:
    """The batched and streaming methods of a class, inherited ones included, by name."""
    found: dict[str, Marker] = vars(cls).get("_gpuserve_markers", {})
    if found:
        return found  # registered: Modal's own methods stand in their places
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, batched | streaming):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def item_annotation(cls: type, marker: Marker) -> Any:
    """The annotation of one item, resolved now: ``In`` of ``batch: list[In]``, or of ``item: In`` where it streams.

    Raises:
        DeclarationError: If the method does not say what it takes.
    """
    name = f"{cls.__qualname__}.{marker.name}"
    parameters = list(inspect.signature(marker.function).parameters)
    annotation: Any = None
    if len(parameters) == 2:  # noqa: PLR2004 (self and the batch, or the item)
        written = marker.function.__annotations__.get(parameters[1])
        # this one alone: the others may name what only a type checker imports
        asked = types.SimpleNamespace(__annotations__={"taken": written} if written is not None else {})
        annotation = typing.get_type_hints(asked, globalns=marker.function.__globals__, include_extras=True).get(
            "taken"
        )
    if isinstance(marker, streaming):
        if annotation is None:
            raise DeclarationError(name, (f"its parameters are ({', '.join(parameters)}); write (self, item: In)",))
        return annotation
    arguments = typing.get_args(annotation)
    if annotation is None or typing.get_origin(annotation) is not list or len(arguments) != 1:
        raise DeclarationError(name, (f"its parameters are ({', '.join(parameters)}); write (self, batch: list[In])",))
    return arguments[0]
