"""The versions of an app: published, staged, promoted, rolled back; what each defines."""

from __future__ import annotations

import time
from collections.abc import Callable

from grpclib import Status

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.handles import class_metadata, function_metadata
from gpuserve.engine.state.logs import Logs
from gpuserve.engine.state.records import App, Deployment, Function, Stated
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.workers.scheduler import Scheduler

__all__ = ["DeploymentService", "layout"]

_NO_SNAPSHOT = (
    "'{}' declares a memory snapshot, and the local engine takes none: each start runs its hooks as Modal does where "
    "there is no snapshot yet, those with snap=True first"
)


class DeploymentService:
    """``publish(app, function)`` gives a function its web addresses, where it has any.

    ``in_force(app)`` is told of each version that comes into force.
    """

    def __init__(
        self,
        registry: Registry,
        scheduler: Scheduler,
        logs: Logs,
        publish: Callable[[App, Function], None],
        in_force: Callable[[App], None],
    ) -> None:
        """Keep the tables."""
        self._in_force = in_force
        self._registry, self._scheduler, self._logs, self._publish = registry, scheduler, logs, publish

    def _known(self, app_id: str) -> App:
        app = self._registry.apps.get(app_id)
        if app is None:
            refuse(Status.NOT_FOUND, f"app {app_id} does not exist")
        return app

    def _deployed(self, app_id: str) -> App:
        app = self._known(app_id)
        if not app.is_deployed:
            refuse(Status.FAILED_PRECONDITION, f"app '{app.name or app.description}' is not deployed")
        return app

    def AppPublish(self, request: api_pb2.AppPublishRequest, caller: Caller) -> api_pb2.AppPublishResponse:
        """Make the definitions that were sent the ones in force."""
        app = self._known(request.app_id)
        if not app.is_live:
            refuse(Status.FAILED_PRECONDITION, f"app {app.id} was stopped while it was being published")
        older = self._registry.deployed(request.name, app.environment)
        if request.app_state == api_pb2.APP_STATE_DEPLOYED and older is not None and older is not app:
            refuse(
                Status.FAILED_PRECONDITION,
                f"app '{request.name}' was deployed by somebody else meanwhile (version {older.version}); deploy again",
            )
        unknown = [ident for ident in request.function_ids.values() if ident not in self._registry.functions]
        unknown += [ident for ident in request.class_ids.values() if ident not in self._registry.classes]
        if unknown:
            refuse(Status.NOT_FOUND, f"{', '.join(unknown)} were not created")
        functions = {ident: self._registry.functions[ident] for ident in request.function_ids.values()}
        unsent = sorted(one.name for one in functions.values() if one.staged is None)
        if request.app_state == api_pb2.APP_STATE_DEPLOYED and unsent:
            # what another deployment has put in force meanwhile must not pass for this one's
            refuse(
                Status.FAILED_PRECONDITION,
                f"what this deployment of '{request.name}' says of {', '.join(unsent)} is not here any more: somebody "
                f"else deployed the app meanwhile (version {app.version}); nothing was changed, deploy again",
            )
        # taken before any container can start, or the client would stop the new ones as well
        now = time.time()
        stated = {ident: one.staged or one.stated for ident, one in functions.items()}
        for one in functions.values():
            self._registry.drop_sent(app, one)
        made = Deployment(
            app.newest + 1,
            now,
            request.client_version or caller.client_version,
            request.deployment_tag,
            request.commit_info.SerializeToString().hex(),
            function_ids=dict(request.function_ids),
            class_ids=dict(request.class_ids),
        )
        app.tags.update(request.tags)
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            app.name, app.description = request.name, app.description or request.name
            made.staged = request.staged and app.version > 0
            self._deploy(app, made, stated)
        else:
            self._put_in_force(app, made, stated)
            app.state = request.app_state or app.state
        reply = self._reply(app, now)
        for name in sorted(
            one.definition.function_name for one in stated.values() if one.definition.checkpointing_enabled
        ):
            reply.server_warnings.add(
                type=api_pb2.Warning.WARNING_TYPE_FUNCTION_CONFIGURATION,
                message=_NO_SNAPSHOT.format(name.removesuffix(".*")),
            )
        return reply

    @staticmethod
    def _reply(app: App, deployed_at: float) -> api_pb2.AppPublishResponse:
        return api_pb2.AppPublishResponse(url=f"gpuserve local engine, app {app.id}", deployed_at=deployed_at)

    def _deploy(self, app: App, made: Deployment, stated: dict[str, Stated]) -> None:
        """Add a version to a deployed app, and put it in force unless it is staged."""
        replaces = app.version > 0
        app.history.append(made)
        if not made.staged:
            app.state, app.deployed_at, app.version = api_pb2.APP_STATE_DEPLOYED, made.deployed_at, made.version
            self._put_in_force(app, made, stated)
        self._registry.save_app(app)
        self._registry.save_version(app, made.version, stated)
        if replaces and not made.staged:
            # rolling: containers of the older version finish what they run and leave
            for task in list(self._scheduler.tasks.values()):
                function = self._registry.functions.get(task.function_id)
                if task.app_id == app.id and function is not None and not function.pinned:
                    self._scheduler.stop(task)

    def _put_in_force(self, app: App, made: Deployment, stated: dict[str, Stated]) -> None:
        app.function_ids, app.class_ids = dict(made.function_ids), dict(made.class_ids)
        for name, class_id in app.class_ids.items():
            self._registry.classes[class_id].function_id = app.function_ids.get(f"{name}.*", "")
        ours = [one for one in self._registry.functions_of(app.id) if not one.pinned]
        for function in ours:
            if function.id in stated:
                function.put_in_force(stated[function.id])
                function.retired = False
                self._publish(app, function)
            elif not function.base_id:
                function.retired = True
        for variant in (one for one in ours if one.base_id):
            variant.overrides = api_pb2.AutoscalerSettings()
            variant.follow(self._registry.functions[variant.base_id])
        self._in_force(app)
        self._logs.reopen(app.id)
        for function in ours:
            self._scheduler.poke(function.id)

    def _again(self, app: App, version: int, *, rollback: bool) -> api_pb2.AppPublishResponse:
        """Deploy a version of *app* once more, as a version of its own."""
        past = app.past(version)
        stated = self._registry.stated_in(app, version)
        if past is None or stated.keys() != set(past.function_ids.values()):
            kept = ", ".join(f"v{one}" for one in sorted(self._registry.kept_versions(app))) or "none"
            refuse(Status.NOT_FOUND, f"version v{version} of app '{app.name}' is not kept; those that are: {kept}")
        made = Deployment(
            app.newest + 1,
            time.time(),
            past.client_version,
            past.tag,
            past.commit,
            rollback_version=version if rollback else 0,
            function_ids=dict(past.function_ids),
            class_ids=dict(past.class_ids),
        )
        self._deploy(app, made, stated)
        return self._reply(app, made.deployed_at)

    def AppRollback(self, request: api_pb2.AppRollbackRequest, _caller: Caller) -> api_pb2.AppRollbackResponse:
        """Put an older version in force again; -1 is the one before the present."""
        app = self._deployed(request.app_id)
        version = request.version
        if version <= 0:
            before = [one.version for one in app.history if one.version < app.version and not one.staged]
            if not before:
                refuse(Status.FAILED_PRECONDITION, f"app '{app.name}' has no version before v{app.version}")
            version = before[-1]
        reply = self._again(app, version, rollback=True)
        return api_pb2.AppRollbackResponse(url=reply.url, deployed_at=reply.deployed_at)

    def AppRollover(self, request: api_pb2.AppRolloverRequest, _caller: Caller) -> api_pb2.AppRolloverResponse:
        """Deploy the version in force once more, so that its containers are fresh."""
        app = self._deployed(request.app_id)
        reply = self._again(app, app.version, rollback=False)
        return api_pb2.AppRolloverResponse(url=reply.url, deployed_at=reply.deployed_at)

    def AppPromote(self, request: api_pb2.AppPromoteRequest, _caller: Caller) -> api_pb2.AppPromoteResponse:
        """Put a staged version in force."""
        app = self._deployed(request.app_id)
        past = app.past(request.version)
        if past is None or not past.staged:
            staged = ", ".join(f"v{one.version}" for one in app.history if one.staged) or "none"
            refuse(
                Status.FAILED_PRECONDITION,
                f"version v{request.version} of app '{app.name}' is not staged; those that are: {staged}",
            )
        reply = self._again(app, request.version, rollback=True)
        return api_pb2.AppPromoteResponse(url=reply.url, deployed_at=reply.deployed_at)

    async def AppDeploymentHistory(
        self, request: api_pb2.AppDeploymentHistoryRequest, _caller: Caller
    ) -> api_pb2.AppDeploymentHistoryResponse:
        """Every deployment of an app, newest first."""
        app = self._known(request.app_id)
        kept = self._registry.kept_versions(app)
        lines = [
            api_pb2.AppDeploymentHistory(
                app_id=app.id,
                version=one.version,
                client_version=one.client_version,
                deployed_at=one.deployed_at,
                deployed_by="local",
                tag=one.tag,
                commit_info=api_pb2.CommitInfo.FromString(bytes.fromhex(one.commit)),
                rollback_version=one.rollback_version,
                rollback_allowed=one.version in kept and one.version != app.version,
            )
            for one in reversed(app.history)
        ]
        return api_pb2.AppDeploymentHistoryResponse(app_deployment_histories=lines, production_app_version=app.version)

    async def AppGetLayout(self, request: api_pb2.AppGetLayoutRequest, _caller: Caller) -> api_pb2.AppGetLayoutResponse:
        """The functions and classes of an app, with their handles."""
        return api_pb2.AppGetLayoutResponse(app_layout=layout(self._registry, self._known(request.app_id)))


def layout(registry: Registry, app: App, version: int = 0) -> api_pb2.AppLayout:
    """What a container or a reloading client is told about its app, as it is or as *version* had it."""
    past = app.past(version) if version else None
    function_ids = app.function_ids if past is None else registry.pin(app, version)
    class_ids = app.class_ids if past is None else past.class_ids
    found = api_pb2.AppLayout(function_ids=function_ids, class_ids=class_ids)
    for function_id in function_ids.values():
        handle = function_metadata(registry.functions[function_id])
        found.objects.add(object_id=function_id, function_handle_metadata=handle)
    for name, class_id in class_ids.items():
        owner = registry.functions[function_ids[f"{name}.*"]]
        found.objects.add(object_id=class_id, class_handle_metadata=class_metadata(owner))
    return found
