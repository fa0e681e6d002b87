"""A served class, declared to modal."""

from __future__ import annotations

import builtins
import inspect
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import modal
from modal.cls import is_parameter

from gpuserve.builders.batched import batched
from gpuserve.builders.finetune import FineTuneJob
from gpuserve.builders.job import ScheduledJob
from gpuserve.builders.local import runtime_for
from gpuserve.builders.lowering.arguments import MAX_INPUTS, busy_inputs, container_arguments, most_inputs
from gpuserve.builders.lowering.costs import note_cost
from gpuserve.builders.lowering.finetune import lower_tuning
from gpuserve.builders.lowering.http_server import lower_http_server, modal_faults
from gpuserve.builders.lowering.job import register_job
from gpuserve.builders.lowering.leaving import drain_on_sigterm
from gpuserve.builders.registered import CHUNK, STREAM, RegisteredServer, served_partial
from gpuserve.builders.server import Marker, WarmModelServer, declaration_of, item_annotation, served_methods
from gpuserve.builders.streaming import streaming
from gpuserve.builders.transport import is_http_only
from gpuserve.exceptions import DeclarationError, GpuserveError, RegistrationError
from gpuserve.runtime.secrets import require_keys
from gpuserve.runtime.server import require_runtime, settle
from gpuserve.specs.http import Http
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.server import ServerDeclaration
from gpuserve.specs.variant import VARIANT, chosen_variant

__all__ = ["register"]

ServerT = TypeVar("ServerT", bound=WarmModelServer)
RegisteredT = TypeVar("RegisteredT", bound=WarmModelServer | FineTuneJob | ScheduledJob)

_REGISTERED: weakref.WeakKeyDictionary[modal.App, dict[str, type]] = weakref.WeakKeyDictionary()


def register(app: modal.App, **overrides: Any) -> Callable[[type[RegisteredT]], type[RegisteredT]]:
    """Make a Modal class of a server or of a tuning, or a Modal function of a scheduled job, on *app*.

    Args:
        app: The app that it belongs to.
        overrides: Declarations put over the class's own, e.g. ``gpu="H100"``.

    Returns:
        A decorator for a leaf subclass; what it returns is a ``modal.Cls`` whose instances have the
        class's batched and streaming methods, typed; with ``Http(transport="server")`` it is a
        ``modal.Server``, whose ``url`` takes requests. Of a `FineTuneJob` it is a ``modal.Cls`` whose instances
        have ``train.remote(run=…)`` and ``train.spawn(run)``.

    Raises:
        RegistrationError: If the class, or another of its name, is on an app already.
        DeclarationError: With every fault of the declaration.

    Examples:
        >>> import modal, gpuserve
        >>> app = modal.App("doubler")
        >>> @gpuserve.register(app)
        ... class Doubler(gpuserve.WarmModelServer):
        ...     image = gpuserve.ImageSpec.debian("3.11")
        ...
        ...     @gpuserve.batched
        ...     def predict(self, batch: list[int]) -> list[int]:
        ...         return [2 * number for number in batch]
        >>> isinstance(Doubler, modal.Cls)
        True
    """

    def decorate(cls: type[RegisteredT]) -> type[RegisteredT]:
        if isinstance(cls, modal.Cls | modal.Function):
            raise RegistrationError("the class is registered already; register a plain class once")
        if not (isinstance(cls, type) and issubclass(cls, WarmModelServer | FineTuneJob | ScheduledJob)):
            raise RegistrationError(
                f"{cls!r} is not a WarmModelServer, FineTuneJob or ScheduledJob; "
                "write class Name(gpuserve.WarmModelServer)"
            )
        taken = _REGISTERED.setdefault(app, {})
        if taken.get(cls.__name__, cls) is not cls and not _is_cell(cls):
            raise RegistrationError(f"the app has a class {cls.__name__} already; rename one of them")
        lowered: Any
        if issubclass(cls, ScheduledJob):
            lowered = register_job(app, cls, overrides)
        elif issubclass(cls, FineTuneJob):
            lowered = lower_tuning(app, cls, overrides)
        else:
            lowered = _served(app, cls, overrides)
        taken[cls.__name__] = cls
        result: type[RegisteredT] = lowered
        return result

    return decorate


def _served(app: modal.App, cls: type[ServerT], overrides: Mapping[str, Any]) -> type[ServerT]:
    """Make a Modal class of a server.

    Raises:
        DeclarationError: With every fault of the declaration.
    """
    name, overlay = _variant_of(cls, overrides.get("env", cls.env))
    declaration = declaration_of(cls, {**overrides, **overlay})
    markers = served_methods(cls)
    faults = []
    if declaration.image is None:
        faults.append("image is missing; write image = gpuserve.ImageSpec.debian('3.11').pip('name==version')")
    if not markers and declaration.http is None:
        faults.append("it has no method to call; write @gpuserve.batched def predict(self, batch: list[In])")
    faults += [
        *_parameter_faults(cls, overrides),
        *_input_faults(cls, markers),
        *_modal_faults(cls, declaration),
    ]
    if faults or declaration.image is None:
        raise DeclarationError(cls.__qualname__, tuple(faults))
    for field, value in {**overrides, **overlay}.items():
        setattr(cls, field, value)
    domain = cls.variants[name].domain if name is not None else None
    lowered = _lowered(app, cls, declaration, declaration.image, domain)
    note_cost(app, cls.__name__, declaration.hourly_cost)
    return lowered


def _variant_of(cls: type[WarmModelServer], env: Mapping[str, str]) -> tuple[str | None, dict[str, Any]]:
    """The variant that is chosen, and what it puts over the class.

    The choice travels in the containers' environment, also that nothing was chosen: they import the file again, and
    must find the same class, whatever variable of that name they would have otherwise.

    Raises:
        DeclarationError: If the class has variants, and none of the name that is chosen.
    """
    if not cls.variants:
        return None, {}
    try:
        name = chosen_variant(cls.variants)
    except ValueError as error:
        raise DeclarationError(cls.__qualname__, (str(error),)) from None
    overlay = cls.variants[name].overlay() if name is not None else {}
    return name, {**overlay, "env": {**env, VARIANT: name or ""}}


def _input_faults(cls: type[WarmModelServer], markers: dict[str, Marker]) -> Iterator[str]:
    for marker in markers.values():
        try:
            item_annotation(cls, marker)
        except DeclarationError as error:
            yield from error.faults
        except NameError:
            continue  # a name of this file that is defined further down: resolved when the container starts


def _modal_faults(cls: type[WarmModelServer], declaration: ServerDeclaration) -> list[str]:
    """What of Modal's own was declared that Modal's decorator does not take."""
    if is_http_only(declaration.http):
        return modal_faults(cls, declaration)
    known = inspect.signature(modal.App.cls).parameters
    unknown = [name for name in declaration.modal if name not in known]
    return [f"modal got {name!r}, which app.cls does not take; leave it out" for name in unknown]


def _lowered(
    app: modal.App, cls: type[ServerT], declaration: ServerDeclaration, image: ImageSpec, domain: str | None
) -> type[ServerT]:
    """Declare *cls* to modal; what modal itself finds wrong is a fault of the declaration as well."""
    try:
        if declaration.http is not None and declaration.http.transport == "server":
            return lower_http_server(app, cls, declaration, image, declaration.http)
        return _lower(app, cls, declaration, image, domain)
    except GpuserveError:
        raise
    except (modal.exception.Error, TypeError, ValueError) as error:
        raise DeclarationError(cls.__qualname__, (f"Modal does not take it: {error}",)) from error


def _parameter_faults(cls: type, overrides: Mapping[str, Any]) -> list[str]:
    own = cls.__mro__[: cls.__mro__.index(WarmModelServer)]
    if "max_parameter_sets" in overrides or any("max_parameter_sets" in vars(base) for base in own):
        return []
    if not any(is_parameter(value) for base in own for value in vars(base).values()):
        return []
    fault = (
        "it has modal.parameter values, and each set of them in use is a pool of containers of its own; "
        "write max_parameter_sets = how many are in use at once, which its cost is multiplied by"
    )
    return [fault]


def _is_cell(cls: type) -> bool:
    """Whether the class stands in a notebook's cell, which is run again after each edit."""
    return cls.__module__ == "__main__" and hasattr(builtins, "get_ipython")


def _lower(
    app: modal.App,
    cls: type[ServerT],
    declaration: ServerDeclaration,
    image: ImageSpec,
    domain: str | None,
) -> type[ServerT]:
    markers = served_methods(cls)
    cls._gpuserve_markers = markers
    for name, marker in markers.items():
        setattr(cls, name, served_partial(modal.method()(_method(name, marker)), marker))
    for name, hook in _hooks(declaration, domain, markers).items():
        setattr(cls, name, hook)
    most = min(most_inputs(declaration), MAX_INPUTS)
    concurrent = modal.concurrent(max_inputs=most, target_inputs=busy_inputs(declaration))
    registered: Any = app.cls(**_arguments(declaration, image))(concurrent(cls))
    registered.__class__ = RegisteredServer
    registered._gpuserve_batched = tuple(name for name, one in markers.items() if isinstance(one, batched))
    registered._gpuserve_streaming = tuple(name for name, one in markers.items() if isinstance(one, streaming))
    registered._gpuserve_chunk_size = declaration.batching.max_batch_size
    registered._gpuserve_name = cls.__qualname__
    registered._gpuserve_declaration = declaration
    result: type[ServerT] = registered
    return result


def _method(name: str, marker: Marker) -> Callable[..., Any]:
    async def answer(self: WarmModelServer, item: Any) -> Any:
        return await require_runtime(self._gpuserve_runtime, type(self).__name__).submit(name, item)

    async def pieces(self: WarmModelServer, item: Any) -> AsyncIterator[Any]:
        async with aclosing(require_runtime(self._gpuserve_runtime, type(self).__name__).stream(name, item)) as made:
            async for piece in made:
                yield piece

    method: Callable[..., Any] = pieces if isinstance(marker, streaming) else answer
    method.__name__ = method.__qualname__ = name
    return method


def _hooks(declaration: ServerDeclaration, domain: str | None, markers: dict[str, Marker]) -> dict[str, Any]:
    secrets = [one for one in declaration.all_secrets if isinstance(one, SecretSpec)]

    async def load(self: WarmModelServer) -> None:
        require_keys(secrets)
        self._gpuserve_runtime = runtime_for(self)
        await self._gpuserve_runtime.load()

    async def make_ready(self: WarmModelServer) -> None:
        runtime = require_runtime(self._gpuserve_runtime, type(self).__name__)
        await runtime.make_ready()
        drain_on_sigterm(runtime)
        settle()

    async def stop(self: WarmModelServer) -> None:
        if self._gpuserve_runtime is not None:
            await self._gpuserve_runtime.stop()

    async def chunk(self: WarmModelServer, items: list[Any], *, method: str) -> Any:
        runtime = require_runtime(self._gpuserve_runtime, type(self).__name__)
        return _stacked(await runtime.submit_many(method, items))

    async def stream(self: WarmModelServer, item: Any, *, method: str) -> AsyncIterator[Any]:
        yield modal.current_function_call_id()
        runtime = require_runtime(self._gpuserve_runtime, type(self).__name__)
        async with aclosing(runtime.stream(method, item)) as made:
            async for piece in made:
                yield piece

    hooks: dict[str, Any] = {
        "_gpuserve_load": modal.enter(snap=declaration.memory_snapshot)(load),
        "_gpuserve_ready": modal.enter(snap=False)(make_ready),
        "_gpuserve_stop": modal.exit()(stop),
        CHUNK: modal.method()(chunk),
    }
    if any(isinstance(marker, streaming) for marker in markers.values()):
        hooks[STREAM] = modal.method()(stream)
    if declaration.http is not None:
        hooks["web"] = modal.asgi_app(
            requires_proxy_auth=declaration.http.requires_proxy_auth,
            custom_domains=[domain] if domain is not None else None,
        )(_web(declaration.http))
    return hooks


def _web(http: Http) -> Callable[[WarmModelServer], Any]:
    def web(self: WarmModelServer) -> Any:
        from gpuserve.runtime.http.app import build_app
        from gpuserve.runtime.http.draining import Draining
        from gpuserve.runtime.http.try_page import TRY_PAGE, TryPage

        runtime = require_runtime(self._gpuserve_runtime, type(self).__name__)
        face = Draining(build_app(runtime, http, self.routes), runtime)
        return TryPage(face) if os.environ.get(TRY_PAGE) else face

    return web


def _stacked(answers: list[Any]) -> Any:
    """Arrays of one shape travel as one buffer; anything else as it is."""
    first = answers[0] if answers else None
    shape, dtype = getattr(first, "shape", None), getattr(first, "dtype", None)
    if shape is None or type(first).__module__ != "numpy":
        return answers
    if any(getattr(one, "shape", None) != shape or getattr(one, "dtype", None) != dtype for one in answers):
        return answers
    import numpy as np

    return np.stack(answers)


def _arguments(declaration: ServerDeclaration, image: ImageSpec) -> dict[str, Any]:
    arguments = {
        **container_arguments(declaration, image),
        "timeout": declaration.timeout_s,
        "retries": declaration.retries or None,
        "region": declaration.region,
        "routing_region": declaration.routing_region,
    }
    return {**arguments, **declaration.modal}
