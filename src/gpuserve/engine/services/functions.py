"""Functions and classes: declared, looked up, bound to parameters, scaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.environments import DEFAULT_ENVIRONMENT
from gpuserve.engine.services.handles import class_metadata, function_data, function_metadata
from gpuserve.engine.state.autoscaler import settings_of
from gpuserve.engine.state.declarations import gpu_faults, schedule_faults
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.records import App, Function, ModalClass, Stated
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.state.variants import merge_options, own_parameters
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
            if function.name == name and not function.base_id and not function.pinned:
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
        stated = Stated(api_pb2.Function(), api_pb2.FunctionData(), new_id("de"))
        stated.definition.CopyFrom(definition)
        stated.data.CopyFrom(data)
        function.staged = stated
        if not function.definition.function_name:
            function.put_in_force(stated)
        if app.is_deployed:
            self._registry.save_sent(app, function, stated)
        preview = Function(id=function.id, app_id=app.id, name=function.name)
        preview.put_in_force(stated)
        self._publish(app, preview)
        function.web_urls = dict(preview.web_urls)
        echoed = api_pb2.Function()
        echoed.CopyFrom(stated.definition)
        for name, url in function.web_urls.items():
            if echoed.is_server:
                echoed.flash_service_urls.append(url)
            elif name:
                echoed.method_definitions[name].web_url = url
            else:
                echoed.web_url = url
        return api_pb2.FunctionCreateResponse(
            function_id=function.id,
            function=echoed,
            function_data=stated.data,
            handle_metadata=function_metadata(preview),
        )

    def ClassCreate(self, request: api_pb2.ClassCreateRequest, _caller: Caller) -> api_pb2.ClassCreateResponse:
        """Make room for a class; the publish that follows says which function runs it."""
        app = self._app(request.app_id)
        known = self._registry.classes.get(request.existing_class_id)
        one = known if known is not None and known.app_id == app.id else ModalClass(new_id("cs"), app.id, "")
        self._registry.classes[one.id] = one
        if app.is_deployed:
            self._registry.save_class(one)
        return api_pb2.ClassCreateResponse(class_id=one.id, handle_metadata=api_pb2.ClassHandleMetadata())

    def _deployed(self, name: str, environment: str, version: int) -> tuple[App, dict[str, str], dict[str, str]]:
        app = self._registry.deployed(name, environment or DEFAULT_ENVIRONMENT)
        if app is None:
            refuse(Status.NOT_FOUND, f"no deployed app '{name}' in environment '{environment or DEFAULT_ENVIRONMENT}'")
        if not version or version == app.version:
            return app, app.function_ids, app.class_ids
        past, pinned = app.past(version), self._registry.pin(app, version)
        if past is None or (past.function_ids and not pinned):
            kept = ", ".join(f"v{one}" for one in sorted(self._registry.kept_versions(app))) or "none"
            refuse(Status.NOT_FOUND, f"version v{version} of app '{name}' is not kept; those that are: {kept}")
        return app, pinned, past.class_ids

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
        options = request.function_options.SerializeToString(deterministic=True)
        parameters = own_parameters(base.definition, request.serialized_params)
        if base.base_id:  # options over options: what is not given again stays
            parameters = parameters or base.serialized_params
            options = merge_options(base.options, options)
            base = self._known(base.base_id)
        if not parameters and not options:
            return api_pb2.FunctionBindParamsResponse(
                bound_function_id=base.id, handle_metadata=function_metadata(base)
            )
        _refuse_faults(base.definition, gpu_faults([api_pb2.Function(resources=request.function_options.resources)]))
        known = self._registry.bound.get((base.id, parameters, options), "")
        bound = self._registry.functions.get(known)
        if bound is None:
            bound = self._registry.new_function(base.app_id, base.name)
            bound.base_id, bound.serialized_params, bound.options = base.id, parameters, options
            bound.pinned, bound.origin_id = base.pinned, base.origin_id
            self._registry.bound[bound.place] = bound.id
        bound.follow(base)
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
        if self._registry.apps[function.app_id].is_deployed:
            self._registry.save_function(function)
        self._scheduler.poke(function.id)
        current = settings_of(function.definition, function.overrides)
        return api_pb2.FunctionUpdateSchedulingParamsResponse(current_settings=current)

    async def FunctionGetSchedulingParams(
        self, request: api_pb2.FunctionGetSchedulingParamsRequest, _caller: Caller
    ) -> api_pb2.FunctionGetSchedulingParamsResponse:
        """A function's scaling: what it declares, what was changed since, and what is in force."""
        function = self._known(request.function_id)
        found = api_pb2.AutoscalerConfiguration(
            settings=settings_of(function.definition, function.overrides),
            default_settings=settings_of(api_pb2.Function(), api_pb2.AutoscalerSettings()),
            static_settings=settings_of(function.definition, api_pb2.AutoscalerSettings()),
            override_settings=function.overrides,
        )
        return api_pb2.FunctionGetSchedulingParamsResponse(autoscaler_configuration=found)

    async def FunctionListVariants(
        self, request: api_pb2.FunctionListVariantsRequest, _caller: Caller
    ) -> api_pb2.FunctionListVariantsResponse:
        """A function's variants: sets of parameters and options, those with most containers first."""
        base = self._known(request.function_id)
        variants = [one for one in self._registry.functions_of(base.app_id) if one.base_id == base.id]
        pools = self._scheduler.pools
        variants.sort(key=lambda one: -len(pools[one.id].tasks) if one.id in pools else 0)
        reply = api_pb2.FunctionListVariantsResponse(ordered_by_task_count=True)
        for one in variants[: request.limit or None]:
            info = reply.infos.add(function_id=one.id, serialized_params=one.serialized_params)
            if one.options:
                info.function_options.MergeFromString(one.options)
        return reply

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
