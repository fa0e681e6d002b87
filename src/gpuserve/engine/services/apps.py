"""Apps: created, found, listed, stopped; their heartbeats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.deployments import layout
from gpuserve.engine.services.environments import DEFAULT_ENVIRONMENT
from gpuserve.engine.state.calls import CallTable
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.records import App
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.workers.scheduler import Scheduler

__all__ = ["AppService"]


class AppService:
    """``stop_app(app)`` ends everything that runs for an app; it may take seconds.

    ``require_environment(name)`` refuses one that does not exist.
    """

    def __init__(
        self,
        registry: Registry,
        calls: CallTable,
        scheduler: Scheduler,
        stop_app: Callable[[App], Awaitable[None]],
        require_environment: Callable[[str], object],
        expect_containers: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep the tables; *expect_containers* is told of every app before its first call."""
        self._clock = clock
        self._expect_containers = expect_containers
        self._require_environment = require_environment
        self._registry, self._calls, self._scheduler, self._stop = registry, calls, scheduler, stop_app
        self._stopping: dict[str, asyncio.Task[None]] = {}

    def _known(self, app_id: str) -> App:
        app = self._registry.apps.get(app_id)
        if app is None:
            refuse(Status.NOT_FOUND, f"app {app_id} does not exist")
        return app

    def _create(self, *, environment: str, description: str, state: int, tags: dict[str, str]) -> App:
        environment = environment or DEFAULT_ENVIRONMENT
        self._require_environment(environment)
        app = App(new_id("ap"), environment, description, state, time.time(), tags=tags)
        app.heartbeat_at = self._clock()
        self._expect_containers()
        return self._registry.add_app(app)

    def AppCreate(self, request: api_pb2.AppCreateRequest, _caller: Caller) -> api_pb2.AppCreateResponse:
        """Begin an app."""
        state = request.app_state or api_pb2.APP_STATE_EPHEMERAL
        app = self._create(
            environment=request.environment_name,
            description=request.description,
            state=state,
            tags=dict(request.tags),
        )
        page = f"gpuserve local engine, app {app.id}"
        return api_pb2.AppCreateResponse(app_id=app.id, app_page_url=page, app_logs_url=page)

    def AppGetOrCreate(self, request: api_pb2.AppGetOrCreateRequest, _caller: Caller) -> api_pb2.AppGetOrCreateResponse:
        """Find a deployed app by name, or begin one."""
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = self._registry.deployed(request.app_name, environment)
        if app is None:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                refuse(Status.NOT_FOUND, f"no deployed app '{request.app_name}' in environment '{environment}'")
            app = self._create(
                environment=environment, description=request.app_name, state=api_pb2.APP_STATE_DEPLOYED, tags={}
            )
            app.name, app.deployed_at = request.app_name, time.time()
            self._registry.save_app(app)
        metadata = api_pb2.AppHandleMetadata(
            description=app.description, app_id=app.id, environment_name=app.environment
        )
        return api_pb2.AppGetOrCreateResponse(app_id=app.id, handle_metadata=metadata)

    def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest, _caller: Caller
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        """The id of a deployed app, or of the one of that name that was stopped last, or nothing."""
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = self._registry.deployed(request.name, environment)
        reply = api_pb2.AppGetByDeploymentNameResponse(environment_name=environment)
        if app is not None:
            reply.app_id = app.id
        else:
            app = self._registry.stopped(request.name, environment)
            reply.previous_app_id = app.id if app is not None else ""
        if app is not None:
            reply.lifecycle.CopyFrom(_lifecycle(app))
        return reply

    def AppLookup(self, request: api_pb2.AppLookupRequest, _caller: Caller) -> api_pb2.AppLookupResponse:
        """The id of a deployed app, or an error."""
        app = self._registry.deployed(request.app_name, request.environment_name or DEFAULT_ENVIRONMENT)
        if app is None:
            refuse(Status.NOT_FOUND, f"no deployed app '{request.app_name}'")
        return api_pb2.AppLookupResponse(app_id=app.id)

    def AppSetTags(self, request: api_pb2.AppSetTagsRequest, _caller: Caller) -> Empty:
        """Replace an app's tags."""
        app = self._known(request.app_id)
        app.tags = dict(request.tags)
        if app.is_deployed:
            self._registry.save_app(app)
        return Empty()

    async def AppGetTags(self, request: api_pb2.AppGetTagsRequest, _caller: Caller) -> api_pb2.AppGetTagsResponse:
        """An app's tags."""
        return api_pb2.AppGetTagsResponse(tags=self._known(request.app_id).tags)

    async def AppGetObjects(
        self, request: api_pb2.AppGetObjectsRequest, _caller: Caller
    ) -> api_pb2.AppGetObjectsResponse:
        """The app's objects by tag."""
        app = self._known(request.app_id)
        by_id = {one.object_id: one for one in layout(self._registry, app).objects}
        tags = {**app.function_ids, **app.class_ids}
        items = [api_pb2.AppGetObjectsItem(tag=tag, object=by_id[ident]) for tag, ident in tags.items()]
        return api_pb2.AppGetObjectsResponse(items=items)

    async def AppGetInfo(self, request: api_pb2.AppGetInfoRequest, _caller: Caller) -> api_pb2.AppGetInfoResponse:
        """The app in one line."""
        app = self._known(request.app_id)
        info = api_pb2.AppHandleMetadata(
            description=app.description,
            app_id=app.id,
            environment_name=app.environment,
            lifecycle=_lifecycle(app),
            functions={name: ident for name, ident in app.function_ids.items() if not name.endswith(".*")},
        )
        return api_pb2.AppGetInfoResponse(info=info)

    async def AppGetLifecycle(
        self, request: api_pb2.AppGetLifecycleRequest, _caller: Caller
    ) -> api_pb2.AppGetLifecycleResponse:
        """When an app was created, deployed and stopped."""
        return api_pb2.AppGetLifecycleResponse(lifecycle=_lifecycle(self._known(request.app_id)))

    async def AppList(self, request: api_pb2.AppListRequest, _caller: Caller) -> api_pb2.AppListResponse:
        """Live apps and those stopped lately."""
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        items = []
        for app in self._registry.apps.values():
            if app.environment != environment:
                continue
            running = sum(task.app_id == app.id for task in self._scheduler.tasks.values())
            items.append(
                api_pb2.AppListResponse.AppListItem(
                    app_id=app.id,
                    description=app.description,
                    name=app.name,
                    state=app.state,  # type: ignore[arg-type]
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=running,
                )
            )
        return api_pb2.AppListResponse(apps=sorted(items, key=lambda item: -item.created_at))

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest, _caller: Caller) -> Empty:
        """The client of an ephemeral app is alive."""
        self._known(request.app_id).heartbeat_at = self._clock()
        return Empty()

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest, _caller: Caller) -> Empty:
        """The client leaves: an ephemeral app ends with it."""
        self.leave(self._known(request.app_id))
        return Empty()

    def leave_silent(self, patience_s: float) -> None:
        """End what is no deployment and whose client was not heard of for *patience_s*."""
        last = self._clock() - patience_s
        for app in list(self._registry.apps.values()):
            if not app.is_deployed and app.heartbeat_at < last:
                self.leave(app)

    def leave(self, app: App) -> None:
        """The client of an app is gone: a detached one goes on until its calls are done."""
        if app.state == api_pb2.APP_STATE_DETACHED:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
            self.stop_if_done(app)
        elif app.is_live and not app.is_deployed and app.state != api_pb2.APP_STATE_DETACHED_DISCONNECTED:
            self.begin_stop(app)

    def stop_if_done(self, app: App) -> None:
        """End a detached app that nobody waits for once it has nothing left to run.

        Source: modal 1.6.4 says of a detached entrypoint that it "keeps the last triggered Modal
        function alive after the parent process has been killed or disconnected".
        """
        if app.state == api_pb2.APP_STATE_DETACHED_DISCONNECTED and not any(
            self._calls.unfinished(function.id) for function in self._registry.functions_of(app.id)
        ):
            self.begin_stop(app)

    async def AppStop(self, request: api_pb2.AppStopRequest, _caller: Caller) -> Empty:
        """End an app for good; returns when its containers are gone."""
        app = self._known(request.app_id)
        if app.state != api_pb2.APP_STATE_STOPPED:
            await asyncio.shield(self.begin_stop(app))
        return Empty()

    def begin_stop(self, app: App) -> asyncio.Task[None]:
        """Stop *app* in the background, once."""
        job = self._stopping.get(app.id)
        if job is None:
            job = self._stopping[app.id] = asyncio.ensure_future(self._stop(app))
            job.add_done_callback(lambda _job: self._stopping.pop(app.id, None))
        return job


def _lifecycle(app: App) -> api_pb2.AppLifecycle:
    return api_pb2.AppLifecycle(
        app_state=app.state,  # type: ignore[arg-type]
        created_at=app.created_at,
        created_by="local",
        deployed_at=app.deployed_at,
        version=app.version,
        stopped_at=app.stopped_at,
    )
