"""Apps: created, published, found, listed, stopped; their heartbeats and logs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import Status

from gpuserve.engine.protocol import Empty, api_pb2
from gpuserve.engine.rpc import Caller, refuse
from gpuserve.engine.services.environments import DEFAULT_ENVIRONMENT
from gpuserve.engine.services.handles import class_metadata, function_metadata
from gpuserve.engine.state.ids import new_id
from gpuserve.engine.state.logs import LogEntry, Logs
from gpuserve.engine.state.registry import App, Deployment, Registry
from gpuserve.engine.workers.scheduler import Scheduler

__all__ = ["AppService"]

_DONE = {api_pb2.APP_STATE_STOPPED, api_pb2.APP_STATE_STOPPING}


class AppService:
    """``stop_app(app)`` ends everything that runs for an app; it may take seconds.

    ``require_environment(name)`` refuses one that does not exist.
    """

    def __init__(
        self,
        registry: Registry,
        scheduler: Scheduler,
        logs: Logs,
        stop_app: Callable[[App], Awaitable[None]],
        require_environment: Callable[[str], object],
    ) -> None:
        """Keep the tables."""
        self._require_environment = require_environment
        self._registry, self._scheduler, self._logs, self._stop = registry, scheduler, logs, stop_app
        self._stopping: dict[str, asyncio.Task[None]] = {}

    def _known(self, app_id: str) -> App:
        app = self._registry.apps.get(app_id)
        if app is None:
            refuse(Status.NOT_FOUND, f"app {app_id} does not exist")
        return app

    def _create(self, *, environment: str, description: str, state: int, tags: dict[str, str]) -> App:
        now, environment = time.time(), environment or DEFAULT_ENVIRONMENT
        self._require_environment(environment)
        return self._registry.add_app(
            App(new_id("ap"), environment, description, state, now, heartbeat_at=now, tags=tags)
        )

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
        """The id of a deployed app, or nothing."""
        environment = request.environment_name or DEFAULT_ENVIRONMENT
        app = self._registry.deployed(request.name, environment)
        reply = api_pb2.AppGetByDeploymentNameResponse(environment_name=environment)
        if app is not None:
            reply.app_id = app.id
            reply.lifecycle.CopyFrom(_lifecycle(app))
        return reply

    def AppLookup(self, request: api_pb2.AppLookupRequest, _caller: Caller) -> api_pb2.AppLookupResponse:
        """The id of a deployed app, or an error."""
        app = self._registry.deployed(request.app_name, request.environment_name or DEFAULT_ENVIRONMENT)
        if app is None:
            refuse(Status.NOT_FOUND, f"no deployed app '{request.app_name}'")
        return api_pb2.AppLookupResponse(app_id=app.id)

    def AppPublish(self, request: api_pb2.AppPublishRequest, _caller: Caller) -> api_pb2.AppPublishResponse:
        """Make the definitions that were sent the ones in force."""
        app = self._known(request.app_id)
        if not app.is_live:
            refuse(Status.FAILED_PRECONDITION, f"app {app.id} was stopped while it was being published")
        # taken before any container can start, or the client would stop the new ones as well
        deployed_at = time.time()
        app.function_ids, app.class_ids = dict(request.function_ids), dict(request.class_ids)
        app.tags.update(request.tags)
        for function in self._registry.functions_of(app.id):
            if function.staged is not None:
                function.definition, function.staged = function.staged, None
                function.overrides = api_pb2.AutoscalerSettings()
        for name, class_id in app.class_ids.items():
            self._registry.classes[class_id].function_id = app.function_ids.get(f"{name}.*", "")
        if request.app_state == api_pb2.APP_STATE_DEPLOYED:
            self._deploy(app, request, deployed_at)
        elif request.app_state:
            app.state = request.app_state
        self._logs.reopen(app.id)
        for function_id in app.function_ids.values():
            self._scheduler.poke(function_id)
        return api_pb2.AppPublishResponse(url=f"gpuserve local engine, app {app.id}", deployed_at=deployed_at)

    def _deploy(self, app: App, request: api_pb2.AppPublishRequest, now: float) -> None:
        older = self._registry.deployed(request.name, app.environment)
        if older is not None and older is not app:
            refuse(
                Status.FAILED_PRECONDITION,
                f"app '{request.name}' was deployed by somebody else meanwhile (version {older.version}); deploy again",
            )
        redeployed = app.is_deployed
        app.name, app.state, app.deployed_at = request.name, api_pb2.APP_STATE_DEPLOYED, now
        app.description = app.description or request.name
        app.history.append(
            Deployment(
                app.version + 1,
                now,
                request.client_version,
                request.deployment_tag,
                function_ids=dict(app.function_ids),
                class_ids=dict(app.class_ids),
            )
        )
        self._registry.save_app(app)
        if redeployed:
            # rolling: containers of the older version finish what they run and leave
            for task in list(self._scheduler.tasks.values()):
                if task.app_id == app.id:
                    self._scheduler.stop(task)

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

    async def AppGetLayout(self, request: api_pb2.AppGetLayoutRequest, _caller: Caller) -> api_pb2.AppGetLayoutResponse:
        """The functions and classes of an app, with their handles."""
        return api_pb2.AppGetLayoutResponse(app_layout=self.layout(self._known(request.app_id)))

    def layout(self, app: App) -> api_pb2.AppLayout:
        """What a container or a reloading client is told about its app."""
        layout = api_pb2.AppLayout(function_ids=app.function_ids, class_ids=app.class_ids)
        for function_id in app.function_ids.values():
            function = self._registry.functions[function_id]
            layout.objects.add(object_id=function_id, function_handle_metadata=function_metadata(function))
        for name, class_id in app.class_ids.items():
            owner = self._registry.functions[app.function_ids[f"{name}.*"]]
            layout.objects.add(object_id=class_id, class_handle_metadata=class_metadata(owner))
        return layout

    async def AppGetObjects(
        self, request: api_pb2.AppGetObjectsRequest, _caller: Caller
    ) -> api_pb2.AppGetObjectsResponse:
        """The app's objects by tag."""
        app = self._known(request.app_id)
        by_id = {one.object_id: one for one in self.layout(app).objects}
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

    async def AppDeploymentHistory(
        self, request: api_pb2.AppDeploymentHistoryRequest, _caller: Caller
    ) -> api_pb2.AppDeploymentHistoryResponse:
        """Every deployment of an app, newest first."""
        app = self._known(request.app_id)
        lines = [
            api_pb2.AppDeploymentHistory(
                app_id=app.id,
                version=one.version,
                client_version=one.client_version,
                deployed_at=one.deployed_at,
                deployed_by="local",
                tag=one.tag,
                rollback_version=one.rollback_version,
            )
            for one in reversed(app.history)
        ]
        return api_pb2.AppDeploymentHistoryResponse(app_deployment_histories=lines, production_app_version=app.version)

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
        self._known(request.app_id).heartbeat_at = time.time()
        return Empty()

    async def AppClientDisconnect(self, request: api_pb2.AppClientDisconnectRequest, _caller: Caller) -> Empty:
        """The client leaves: an ephemeral app ends with it."""
        app = self._known(request.app_id)
        if app.state == api_pb2.APP_STATE_DETACHED:
            app.state = api_pb2.APP_STATE_DETACHED_DISCONNECTED
        elif not app.is_deployed:
            self.begin_stop(app)
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest, _caller: Caller) -> Empty:
        """End an app for good; returns when its containers are gone."""
        app = self._known(request.app_id)
        await asyncio.shield(self.begin_stop(app))
        return Empty()

    def begin_stop(self, app: App) -> asyncio.Task[None]:
        """Stop *app* in the background, once."""
        job = self._stopping.get(app.id)
        if job is None:
            job = self._stopping[app.id] = asyncio.ensure_future(self._stop(app))
        return job

    async def AppGetLogs(
        self, request: api_pb2.AppGetLogsRequest, _caller: Caller
    ) -> AsyncIterator[api_pb2.TaskLogsBatch]:
        """Log entries as they are written, until the app is done or the client's time is up."""
        app = self._known(request.app_id)
        after = int(request.last_entry_id.partition("-")[0] or 0) if request.last_entry_id else 0
        try:
            async with asyncio.timeout(request.timeout or None):
                async for entry in self._logs.of(app.id).follow(after):
                    if _wanted(entry, request):
                        yield entry.batch()
                yield api_pb2.TaskLogsBatch(app_done=True)
        except TimeoutError:
            return

    async def AppFetchLogs(self, request: api_pb2.AppFetchLogsRequest, _caller: Caller) -> api_pb2.AppFetchLogsResponse:
        """Past log entries in a span of time, oldest first."""
        found = self._between(request)
        newest = found[-(request.limit or len(found)) :] if found else []
        return api_pb2.AppFetchLogsResponse(batches=[entry.batch() for entry in newest])

    async def AppCountLogs(self, request: api_pb2.AppCountLogsRequest, _caller: Caller) -> api_pb2.AppCountLogsResponse:
        """How many entries there are in each stretch of ``bucket_secs``."""
        width = request.bucket_secs or 60
        buckets: dict[int, api_pb2.AppCountLogsResponse.LogBucket] = {}
        for entry in self._between(request):
            start = int(entry.at // width * width)
            bucket = buckets.setdefault(
                start, api_pb2.AppCountLogsResponse.LogBucket(bucket_start_at=Timestamp(seconds=start))
            )
            if entry.descriptor == api_pb2.FILE_DESCRIPTOR_STDERR:
                bucket.stderr_logs += 1
            else:
                bucket.stdout_logs += 1
        ordered = [buckets[start] for start in sorted(buckets)]
        return api_pb2.AppCountLogsResponse(app_id=request.app_id, buckets=ordered)

    def _between(self, request: api_pb2.AppFetchLogsRequest | api_pb2.AppCountLogsRequest) -> list[LogEntry]:
        since, until = request.since.ToNanoseconds() / 1e9, request.until.ToNanoseconds() / 1e9
        return [
            entry
            for entry in self._logs.of(self._known(request.app_id).id).entries
            if entry.at >= since
            and (not until or entry.at < until)
            and (not request.task_id or entry.task_id == request.task_id)
            and (not request.function_id or entry.function_id == request.function_id)
            and (not request.source or entry.descriptor == request.source)
            and request.search_text in entry.text
        ]


def _wanted(entry: LogEntry, request: api_pb2.AppGetLogsRequest) -> bool:
    return (
        (not request.task_id or entry.task_id == request.task_id)
        and (not request.function_id or entry.function_id == request.function_id)
        and (not request.file_descriptor or entry.descriptor == request.file_descriptor)
        and request.search_text in entry.text
    )


def _lifecycle(app: App) -> api_pb2.AppLifecycle:
    return api_pb2.AppLifecycle(
        app_state=app.state,  # type: ignore[arg-type]
        created_at=app.created_at,
        created_by="local",
        deployed_at=app.deployed_at,
        version=app.version,
        stopped_at=app.stopped_at,
    )
