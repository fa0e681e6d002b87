"""Functions and classes: declared, looked up, bound to parameters, scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.environments import DEFAULT_ENVIRONMENT
from gpuserve.engine.services.handles import class_metadata, function_data, function_metadata
from gpuserve.engine.state.declarations import gpu_faults, schedule_faults
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.registry import App, Function, ModalClass, Registry
from gpuserve.engine.workers.scheduler import Scheduler

__all__ = ["FunctionService"]


class FunctionService:
    """``publish(app, function)`` gives the function its web addresses, where it has any."""

    def __init__(self, registry: Registry, scheduler: Scheduler, publish: Callable[[App, Function], None]) -> None:
        """Keep the tables."""
        self._registry, self._scheduler, self._publish = registry, scheduler, publish

    def _app(self, app_id: str) -> App:
        app = self._registry.apps.get(app_id)
        if app is None or not app.is_live:
            refuse(Status.NOT_FOUND, f"app {app_id} does not exist or was stopped")
        return app

    def _known(self, function_id: str) -> Function:
        function = self._registry.functions.get(function_id)
        if function is None:
            refuse(Status.NOT_FOUND, f"function {function_id} does not exist; its app may have been stopped")
        return function

    def _slot(self, app_id: str, name: str, existing_id: str) -> Function:
        """The function of that name in this app, kept through redeployments."""
        existing = self._registry.functions.get(existing_id)
        if existing is not None and existing.app_id == app_id:
            return existing
        for function in self._registry.functions_of(app_id):
            if function.name == name and not function.base_id:
                return function
        return self._registry.new_function(app_id, name)

    def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest, _caller: Caller
    ) -> api_pb2.FunctionPrecreateResponse:
        """Give a function its id before it is defined, so that others can refer to it."""
        app = self._app(request.app_id)
        function = self._slot(app.id, request.function_name, request.existing_function_id)
        draft = api_pb2.Function(
            function_name=request.function_name,
            function_type=request.function_type,
            webhook_config=request.webhook_config,
            method_definitions=request.method_definitions,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        preview = Function(id=function.id, app_id=app.id, name=function.name, definition=draft)
        self._publish(app, preview)
        function.web_urls.update(preview.web_urls)
        return api_pb2.FunctionPrecreateResponse(function_id=function.id, handle_metadata=function_metadata(preview))

    def FunctionCreate(self, request: api_pb2.FunctionCreateRequest, _caller: Caller) -> api_pb2.FunctionCreateResponse:
        """Define a function; the definition takes effect when its app is published."""
        app = self._app(request.app_id)
        if request.HasField("function_data") and request.function_data.ranked_functions:
            ranked = sorted(request.function_data.ranked_functions, key=lambda one: one.rank)
            definition = ranked[0].function
            data = request.function_data
        else:
            definition, data = request.function, function_data(request.function)
        if request.HasField("schedule"):
            definition.schedule.CopyFrom(request.schedule)
        alternatives = [one.function for one in data.ranked_functions]
        _refuse_faults(definition, [*gpu_faults(alternatives), *schedule_faults(definition.schedule)])
        function = self._slot(app.id, definition.function_name, request.existing_function_id)
        function.definition_id = new_id("de")
        function.data = api_pb2.FunctionData()
        function.data.CopyFrom(data)
        function.staged = api_pb2.Function()
        function.staged.CopyFrom(definition)
        if not function.definition.function_name:
            function.definition = function.staged
        preview = Function(id=function.id, app_id=app.id, name=function.name, definition=function.staged)
        preview.definition_id = function.definition_id
        self._publish(app, preview)
        function.web_urls = dict(preview.web_urls)
        echoed = api_pb2.Function()
        echoed.CopyFrom(function.staged)
        for name, url in function.web_urls.items():
            if function.staged.is_server:
                echoed.flash_service_urls.append(url)
            elif name:
                echoed.method_definitions[name].web_url = url
            else:
                echoed.web_url = url
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=echoed,
            function_data=function.data,
            handle_metadata=function_metadata(preview),
        )

    def ClassCreate(self, request: api_pb2.ClassCreateRequest, _caller: Caller) -> api_pb2.ClassCreateResponse:
        """Make room for a class; the publish that follows says which function runs it."""
        app = self._app(request.app_id)
        known = self._registry.classes.get(request.existing_class_id)
        one = known if known is not None and known.app_id == app.id else ModalClass(new_id("cs"), app.id, "")
        self._registry.classes[one.id] = one
        return api_pb2.ClassCreateResponse(class_id=one.id, handle_metadata=api_pb2.ClassHandleMetadata())

    def _deployed(self, name: str, environment: str, version: int) -> tuple[App, dict[str, str], dict[str, str]]:
        app = self._registry.deployed(name, environment or DEFAULT_ENVIRONMENT)
        if app is None:
            refuse(Status.NOT_FOUND, f"no deployed app '{name}' in environment '{environment or DEFAULT_ENVIRONMENT}'")
        if not version or version == app.version:
            return app, app.function_ids, app.class_ids
        for past in app.history:
            if past.version == version:
                return app, past.function_ids, past.class_ids
        return refuse(Status.NOT_FOUND, f"app '{name}' has no version {version}; the newest is {app.version}")

    def FunctionGet(self, request: api_pb2.FunctionGetRequest, _caller: Caller) -> api_pb2.FunctionGetResponse:
        """Look a deployed function up by the names of its app and itself."""
        app, function_ids, class_ids = self._deployed(request.app_name, request.environment_name, request.app_version)
        function_id = function_ids.get(request.object_tag)
        if function_id is None:
            if request.object_tag in class_ids:
                refuse(Status.NOT_FOUND, f"'{request.object_tag}' is a class function; use modal.Cls.from_name")
            names = ", ".join(sorted(name for name in function_ids if "." not in name)) or "none"
            refuse(Status.NOT_FOUND, f"app '{app.name}' has no function '{request.object_tag}'; it has: {names}")
        function = self._known(function_id)
        return api_pb2.FunctionGetResponse(
            function_id=function.id, handle_metadata=function_metadata(function), function=function.data
        )

    def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest, _caller: Caller
    ) -> api_pb2.FunctionGetByIdResponse:
        """Look a function up by its id."""
        function = self._known(request.function_id)
        return api_pb2.FunctionGetByIdResponse(function=function.data, handle_metadata=function_metadata(function))

    def ClassGet(self, request: api_pb2.ClassGetRequest, _caller: Caller) -> api_pb2.ClassGetResponse:
        """Look a deployed class up."""
        app, function_ids, class_ids = self._deployed(request.app_name, request.environment_name, request.app_version)
        class_id = class_ids.get(request.object_tag)
        if class_id is None:
            names = ", ".join(sorted(class_ids)) or "none"
            refuse(Status.NOT_FOUND, f"app '{app.name}' has no class '{request.object_tag}'; it has: {names}")
        function = self._known(function_ids[f"{request.object_tag}.*"])
        return api_pb2.ClassGetResponse(class_id=class_id, handle_metadata=class_metadata(function))

    def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest, _caller: Caller
    ) -> api_pb2.FunctionBindParamsResponse:
        """A class with parameters or options is a function of its own, with its own containers."""
        base = self._known(request.function_id)
        options = request.function_options
        has_options = options.ByteSize() > 0
        if not request.serialized_params and not has_options:
            return api_pb2.FunctionBindParamsResponse(
                bound_function_id=base.id, handle_metadata=function_metadata(base)
            )
        _refuse_faults(base.definition, gpu_faults([api_pb2.Function(resources=options.resources)]))
        place = (base.id, request.serialized_params, options.SerializeToString(deterministic=True))
        bound = self._registry.functions.get(self._registry.bound.get(place, ""))
        if bound is None:
            bound = self._registry.new_function(base.app_id, base.name)
            bound.base_id = base.base_id or base.id
            bound.serialized_params = request.serialized_params or base.serialized_params
            self._registry.bound[place] = bound.id
        bound.definition = api_pb2.Function()
        bound.definition.CopyFrom(base.definition)
        _apply(options, bound.definition)
        bound.data, bound.definition_id, bound.web_urls = base.data, base.definition_id, dict(base.web_urls)
        if self._registry.apps[base.app_id].is_deployed:
            self._registry.save_function(bound)
        return api_pb2.FunctionBindParamsResponse(bound_function_id=bound.id, handle_metadata=function_metadata(bound))

    def FunctionUpdateSchedulingParams(
        self, request: api_pb2.FunctionUpdateSchedulingParamsRequest, _caller: Caller
    ) -> api_pb2.FunctionUpdateSchedulingParamsResponse:
        """Change a function's scaling until its next deployment."""
        function = self._known(request.function_id)
        function.overrides.MergeFrom(request.settings)
        if request.warm_pool_size_override:
            function.overrides.min_containers = request.warm_pool_size_override
        current = api_pb2.AutoscalerSettings()
        current.CopyFrom(function.definition.autoscaler_settings)
        current.MergeFrom(function.overrides)
        self._scheduler.poke(function.id)
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=current)

    def FunctionGetSerialized(
        self, request: api_pb2.FunctionGetSerializedRequest, _caller: Caller
    ) -> api_pb2.FunctionGetSerializedResponse:
        """The bytes of a serialized function, unread."""
        definition = self._known(request.function_id).definition
        return api_pb2.FunctionGetSerializedResponse(
            function_serialized=definition.function_serialized, class_serialized=definition.class_serialized
        )


def _refuse_faults(definition: api_pb2.Function, faults: Sequence[str]) -> None:
    if faults:
        name = (definition.implementation_name or definition.function_name).removesuffix(".*")
        refuse(Status.INVALID_ARGUMENT, f"function '{name}' cannot run as declared: {'; '.join(faults)}")


def _apply(options: api_pb2.FunctionOptions, definition: api_pb2.Function) -> None:
    """Lay the options of ``with_options`` and its kin over a definition."""
    if options.secret_ids or options.replace_secret_ids:
        kept = [] if options.replace_secret_ids else list(definition.secret_ids)
        definition.ClearField("secret_ids")
        definition.secret_ids.extend([*kept, *options.secret_ids])
    if options.volume_mounts or options.replace_volume_mounts:
        kept_mounts = [] if options.replace_volume_mounts else list(definition.volume_mounts)
        definition.ClearField("volume_mounts")
        definition.volume_mounts.extend([*kept_mounts, *options.volume_mounts])
    if options.HasField("resources"):
        definition.resources.MergeFrom(options.resources)
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    settings = definition.autoscaler_settings
    if options.HasField("concurrency_limit"):
        definition.concurrency_limit = settings.max_containers = options.concurrency_limit
    if options.HasField("warm_pool_size"):
        definition.warm_pool_size = settings.min_containers = options.warm_pool_size
    if options.HasField("buffer_containers"):
        settings.buffer_containers = options.buffer_containers
    if options.HasField("task_idle_timeout_secs"):
        definition.task_idle_timeout_secs = settings.scaledown_window = options.task_idle_timeout_secs
    for name in (
        "timeout_secs",
        "target_concurrent_inputs",
        "max_concurrent_inputs",
        "batch_max_size",
        "batch_linger_ms",
    ):
        if options.HasField(name):
            setattr(definition, name, getattr(options, name))
