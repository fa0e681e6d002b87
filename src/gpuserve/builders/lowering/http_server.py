"""A class that is served over HTTP alone, declared to modal as ``@app.server``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import modal

from gpuserve.builders.local import runtime_for
from gpuserve.builders.lowering.arguments import busy_inputs, container_arguments, most_inputs
from gpuserve.builders.registered import RegisteredHttpServer
from gpuserve.builders.server import WarmModelServer, served_methods
from gpuserve.builders.transport import INSTEAD
from gpuserve.runtime.secrets import require_keys
from gpuserve.runtime.server import require_runtime, settle
from gpuserve.specs.http import Http
from gpuserve.specs.image import ImageSpec
from gpuserve.specs.secret import SecretSpec
from gpuserve.specs.server import ServerDeclaration

__all__ = ["lower_http_server", "modal_faults"]

ServerT = TypeVar("ServerT", bound=WarmModelServer)

# Modal's default, which is also where its examples run.
_ROUTING_REGION = "us-east"
# Source: our choice.
_UNLOAD_S = 5


def modal_faults(cls: type[WarmModelServer], declaration: ServerDeclaration) -> list[str]:
    """What of Modal's own a class has that ``@app.server`` does not take."""
    known = inspect.signature(modal.App.server).parameters
    faults = [
        f"modal got {name!r}, which app.server does not take; leave it out, or {INSTEAD}"
        for name in declaration.modal
        if name not in known
    ]
    faults += [
        f"{name} is a method of Modal's own with transport='server', which has no calls by RPC and one way in; "
        f"make it a route in def routes(self, router), or {INSTEAD}"
        for name, partial in _own_partials(cls)
        if not _is_hook(partial)
    ]
    return faults


def _own_partials(cls: type) -> Iterator[tuple[str, Any]]:
    for name in dict.fromkeys(name for base in cls.__mro__ for name in vars(base)):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, modal.partial_function.PartialFunction) and not name.startswith("_gpuserve"):
            yield name, value


def _is_hook(partial: Any) -> bool:
    """Whether it is a ``modal.enter`` or ``modal.exit``.

    It is Modal's own judgement, asked on an app that is thrown away; but endpoints, which Modal leaves out without a
    word, are refused by us.
    """
    if partial._is_web_endpoint():
        return False

    class Probe:
        @modal.enter()
        def begin(self) -> None:
            """What a server must have."""

        asked = partial

    try:
        modal.App("probe").server(serialized=True, enable_memory_snapshot=True)(Probe)
    except modal.exception.InvalidError:
        return False
    return True


def lower_http_server(
    app: modal.App,
    cls: type[ServerT],
    declaration: ServerDeclaration,
    image: ImageSpec,
    http: Http,
) -> type[ServerT]:
    """Declare *cls* to modal; its start ends with the port open, its end with every request answered."""
    markers = served_methods(cls)
    cls._gpuserve_markers = markers
    for name, hook in _hooks(declaration, http).items():
        setattr(cls, name, hook)
    registered: Any = app.server(**_arguments(declaration, image, http))(cls)
    registered.__class__ = RegisteredHttpServer
    registered._gpuserve_methods = tuple(markers)
    registered._gpuserve_name = cls.__qualname__
    registered._gpuserve_declaration = declaration
    result: type[ServerT] = registered
    return result


def _arguments(declaration: ServerDeclaration, image: ImageSpec, http: Http) -> dict[str, Any]:
    region = declaration.region
    arguments: dict[str, Any] = {
        **container_arguments(declaration, image),
        "compute_region": list(region) if isinstance(region, tuple) else region,
        "routing_region": declaration.routing_region or _ROUTING_REGION,
        "port": http.port,
        # past it Modal answers 429, as the queue itself would
        "max_concurrency": most_inputs(declaration),
        "target_concurrency": busy_inputs(declaration),
        # our own keys guard every route, unless Modal is asked to
        "unauthenticated": not http.requires_proxy_auth,
        # a request that was taken may still use all of its time, and `unload` has some after it
        "exit_grace_period": math.ceil(http.timeout_s) + _UNLOAD_S,
    }
    return {**arguments, **declaration.modal}


def _hooks(declaration: ServerDeclaration, http: Http) -> dict[str, Any]:
    secrets = [one for one in declaration.all_secrets if isinstance(one, SecretSpec)]

    async def load(self: WarmModelServer) -> None:
        require_keys(secrets)
        self._gpuserve_runtime = runtime_for(self)
        await self._gpuserve_runtime.load()

    async def serve(self: WarmModelServer) -> None:
        from gpuserve.runtime.http.serve import HttpThread

        runtime = require_runtime(self._gpuserve_runtime, type(self).__name__)
        await runtime.make_ready()
        self.__dict__["_gpuserve_http"] = HttpThread(runtime, http, self.routes).start()
        settle()

    def stop(self: WarmModelServer) -> None:
        thread = self.__dict__.get("_gpuserve_http")
        if thread is not None:
            thread.stop()

    return {
        "_gpuserve_load": modal.enter(snap=declaration.memory_snapshot)(load),
        "_gpuserve_ready": modal.enter(snap=False)(serve),
        "_gpuserve_stop": modal.exit()(stop),
    }
