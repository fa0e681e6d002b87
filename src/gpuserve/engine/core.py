"""The engine's parts, put together on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpclib.server import Server

from gpuserve.engine.coverage import instead_of
from gpuserve.engine.listener import Listener
from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.replies import Replies
from gpuserve.engine.rpc import Access, Servicer
from gpuserve.engine.services.app_logs import AppLogService
from gpuserve.engine.services.apps import AppService
from gpuserve.engine.services.billing import BillingService
from gpuserve.engine.services.blobs import BlobService
from gpuserve.engine.services.calls import CallService, Completions
from gpuserve.engine.services.containers import ContainerService
from gpuserve.engine.services.deployments import DeploymentService, layout
from gpuserve.engine.services.dicts import DictService
from gpuserve.engine.services.environments import EnvironmentService, require_environment
from gpuserve.engine.services.functions import FunctionService
from gpuserve.engine.services.images import ImageService
from gpuserve.engine.services.mounts import MountService
from gpuserve.engine.services.named import owners, release_app
from gpuserve.engine.services.proxy_tokens import ProxyTokenService
from gpuserve.engine.services.queues import QueueService
from gpuserve.engine.services.secrets import SecretService
from gpuserve.engine.services.streams import StreamService
from gpuserve.engine.services.volumes import VolumeService
from gpuserve.engine.services.web_calls import EngineWebCalls
from gpuserve.engine.session import Session
from gpuserve.engine.state.addresses import label_of
from gpuserve.engine.state.calls import Call, CallTable
from gpuserve.engine.state.logs import Logs
from gpuserve.engine.state.records import App, Function
from gpuserve.engine.state.registry import Registry
from gpuserve.engine.state.streams import Streams
from gpuserve.engine.state_file import explained
from gpuserve.engine.store import Store
from gpuserve.engine.workers.assembly import Assembly
from gpuserve.engine.workers.host_image import importable
from gpuserve.engine.workers.ingress import Ingress, Target
from gpuserve.engine.workers.launcher import Launcher
from gpuserve.engine.workers.objects_http import ObjectServer
from gpuserve.engine.workers.ports import cannot_listen
from gpuserve.engine.workers.schedule_clock import Clocks, ScheduleClock
from gpuserve.engine.workers.scheduler import Scheduler
from gpuserve.engine.workers.tasks import Task
from gpuserve.engine.workers.venvs import Venvs, find_uv

__all__ = ["Core"]

log = logging.getLogger("gpuserve.engine")

# An app whose client has been silent this long is stopped, unless it is deployed.
# Source: modal 1.6.4 sends a heartbeat every 15 s.
_SILENT_CLIENT_S = 60.0


class Core:
    """One engine: its state, its services, its sockets. Lives on the loop that `start` runs on."""

    def __init__(
        self,
        home: Path,
        *,
        image_check: str,
        port: int | None,
        isolation: str,
        image_mode: str = "host",
        clocks: Clocks | None = None,
    ) -> None:
        """Open the state folder; nothing listens yet.

        Raises:
            StateError: If the state folder cannot be used.
        """
        self.home, self.image_check, self._port, self._isolation = home, image_check, port, isolation
        self.image_mode, self._clocks = image_mode, clocks
        self.started_at = time.time()
        with contextlib.ExitStack() as undo:
            self.store = Store(home)
            undo.callback(self.store.close)
            # over tcp no successor takes over: whoever holds the port in between would be sent its token
            self._session = Session.begin(home, kept=port is None)
            self.run_folder = self._session.run_folder
            self.token_id, self.token_secret = "ak-local", self._session.token_secret
            try:
                self._assemble()
            except sqlite3.DatabaseError as error:
                raise explained(self.store.path, error) from error
            undo.pop_all()

    def _assemble(self) -> None:
        session = self._session
        self.registry, self.calls, self.logs = Registry(self.store), CallTable(), Logs()
        self.streams, self._completions = Streams(), Completions()
        self.launcher = Launcher(
            self.run_folder / "containers",
            self.home / "containers.lock",
            isolation=self._isolation,
            hidden=(self.home,) if self.run_folder.is_relative_to(self.home) else (self.run_folder, self.home),
        )
        self._object_server = ObjectServer(self.home / "blobs", session.object_key, session.object_port)
        self._build(strict=self.image_check == "error")
        self._release_orphans()
        self._jobs: set[asyncio.Task[None]] = set()
        self._server: Server | None = None
        self.server_url = ""

    def _build(self, *, strict: bool) -> None:
        store, home = self.store, self.home
        self.secrets, self.dicts, self.queues = SecretService(store), DictService(store), QueueService(store)
        self.blobs = BlobService(home / "blobs", self._object_server)
        self.mounts = MountService(store, home / "mounts", self.blobs.file)
        self.volumes = VolumeService(store, home / "volumes", self._object_server, self.mounts.host_file)
        self.venvs = Venvs(home / "venvs", find_uv()) if self.image_mode == "venv" else None
        self.images = images = ImageService(
            self.registry, self.mounts, strict=strict, venvs=self.venvs, secrets=self.secrets.environment_of
        )
        assembly = Assembly(
            registry=self.registry,
            layout=lambda function: layout(self.registry, self.registry.apps[function.app_id], function.pinned),
            secrets=self.secrets.environment_of,
            mounted=self.mounts.files,
            volume_folder=self.volumes.host_folder,
            volume_metadata=self.volumes.metadata,
            plan=images.plan,
            importable=importable,
            door_url=lambda task: f"unix://{self._door_path(task)}",
            environment=images.environment,
        )
        self.scheduler = Scheduler(
            self.registry,
            self.calls,
            self.logs,
            self.launcher,
            compose=assembly.compose,
            open_door=self._open_door,
            door_path=self._door_path,
            settled=self._settled,
            machine_cap=max(4, 2 * (os.cpu_count() or 1)),
        )
        self.call_service = CallService(
            self.registry, self.calls, self.scheduler, self._completions, self.streams, self.blobs.drop
        )
        self.schedules = ScheduleClock(self.registry, store, self.call_service.start_scheduled, self._clocks)
        self.web_calls = EngineWebCalls(self.registry, self.calls, self.scheduler, self.call_service, self._completions)
        proxy_tokens = ProxyTokenService(store)
        self.ingress = Ingress(
            self.web_calls, self.web_calls, self.streams, read_blob=self.blobs.read, proxy_tokens=proxy_tokens.accepts
        )
        self.apps = AppService(
            self.registry,
            self.calls,
            self.scheduler,
            self._stop_app,
            functools.partial(require_environment, store),
            self.launcher.expect,
        )
        functions = FunctionService(self.registry, self.scheduler, self._publish)
        services = [
            EnvironmentService(store),
            BillingService(),
            self.apps,
            DeploymentService(self.registry, self.scheduler, self.logs, self._publish, self.schedules.follow),
            AppLogService(self.registry, self.logs),
            functions,
            self.call_service,
            ContainerService(self.registry, self.calls, self.scheduler),
            images,
            proxy_tokens,
            self.secrets,
            self.dicts,
            self.queues,
            self.volumes,
            self.blobs,
            self.mounts,
            StreamService(self.streams, self.calls),
        ]
        access = Access(token_id=self.token_id, token_secret=self.token_secret)
        self.servicer = Servicer(
            services, store, Replies(store), access, instead_of, self.registry.reread, self.scheduler.waiting
        )

    def _settled(self, call: Call) -> None:
        self.call_service.settled(call)
        function = self.registry.functions.get(call.function_id)
        app = self.registry.apps.get(function.app_id) if function else None
        if app is not None:
            self.apps.stop_if_done(app)

    def _door_path(self, task: Task) -> str:
        return str(self.run_folder / f"{task.id}.sock")

    def _open_door(self, task: Task) -> Server:
        door = self.servicer.for_access(Access(task_id=task.id))
        return Listener(door)

    def _publish(self, app: App, function: Function) -> None:
        """Give a function's endpoints their addresses; the same label keeps its address."""
        definition = function.definition
        ephemeral = not app.is_deployed and app.state != api_pb2.APP_STATE_INITIALIZING
        app_name = app.name or app.description
        name = function.name.removesuffix(".*")

        def publish(method: str, webhook: api_pb2.WebhookConfig) -> None:
            label = label_of(
                app_name,
                f"{name}-{method}" if method else name,
                requested=webhook.requested_suffix,
                suffix=(webhook.ephemeral_suffix or "dev") if ephemeral else "",
            )
            target = Target(function.id, method, "asgi", requires_proxy_auth=webhook.requires_proxy_auth)
            wanted = function.web_urls.get(method, "")
            function.web_urls[method] = self.ingress.publish(label, target, wanted)

        if definition.webhook_config.type:
            publish("", definition.webhook_config)
        for method_name, method in definition.method_definitions.items():
            if method.webhook_config.type:
                publish(method_name, method.webhook_config)
        if definition.is_server:
            label = label_of(app_name, name, requested="", suffix="dev" if ephemeral else "")
            guarded = not definition.http_config.unauthenticated
            target = Target(function.id, "", "server", requires_proxy_auth=guarded)
            wanted = function.web_urls.get("", "")
            function.web_urls[""] = self.ingress.publish(label, target, wanted)

    async def _stop_app(self, app: App) -> None:
        app.state = api_pb2.APP_STATE_STOPPING
        for function in self.registry.functions_of(app.id):
            for url in function.web_urls.values():
                self.ingress.withdraw(url)
        await self.scheduler.stop_app(app.id)
        app.state, app.stopped_at = api_pb2.APP_STATE_STOPPED, time.time()
        try:
            with self.store.transaction():
                self._release(app.id)
                self.schedules.forget(app)
                if app.history:
                    self.registry.save_app(app)
                self.registry.drop_app(app)
        except BaseException:
            self.registry.reread()
            raise
        self.logs.finish(app.id)

    def _release(self, app_id: str) -> None:
        """Delete the nameless objects that an app owned."""
        self.volumes.release(app_id)
        release_app(self.store, app_id)

    def _release_orphans(self) -> None:
        """Delete what belonged to apps that ended with an earlier engine."""
        with self.store.transaction():
            for app_id in owners(self.store):
                if app_id not in self.registry.apps:
                    self._release(app_id)

    async def start(self) -> None:
        """Listen, and run what deployed apps want running."""
        await self.launcher.start()
        if self.registry.apps:
            self.launcher.expect()
        await self._object_server.start()
        side_door = self._object_server
        self._session = replace(self._session, object_key=side_door.key, object_port=side_door.port)
        self._session.save()
        await self.ingress.start()
        for function in self.registry.functions.values():
            app = self.registry.apps.get(function.app_id)
            if app is not None and app.is_deployed and not function.base_id:
                self._publish(app, function)
                self.registry.save_function(function)
        await self._listen()
        self.scheduler.start()
        self._jobs |= {asyncio.ensure_future(self._watch_clients()), asyncio.ensure_future(self.schedules.run())}

    async def _listen(self) -> None:
        self._server = server = Listener(self.servicer)
        if self._port is None:
            path = self.run_folder / "engine.sock"
            await server.start(path=str(path))
            path.chmod(0o600)
            self.server_url = f"unix://{path}"
            return
        try:
            await server.start("127.0.0.1", self._port)
        except OSError as error:
            self._server = None
            raise cannot_listen(self._port, error) from error
        host, port = server._server.sockets[0].getsockname()[:2]  # type: ignore[union-attr]
        self.server_url = f"http://{host}:{port}"

    async def _watch_clients(self) -> None:
        pause = _SILENT_CLIENT_S / 4
        while True:
            self.blobs.sweep()
            before = time.monotonic()
            await asyncio.sleep(pause)  # noqa: TID251 (the engine's own clock)
            now = time.monotonic()
            self.call_service.expire()
            if now - before > 2 * pause:
                continue  # the engine itself stood still: heartbeats are still to be read
            self.apps.leave_silent(_SILENT_CLIENT_S)
            self._expire()

    def _expire(self) -> None:
        """Drop nameless objects that nobody has asked for lately."""
        try:
            with self.store.transaction():
                for service in (self.dicts, self.queues, self.volumes):
                    service.expire()
        except sqlite3.OperationalError as error:
            log.warning("nothing could be dropped, which is tried again: %s", error)  # a full disk, mostly

    def status(self) -> dict[str, Any]:
        """The engine in figures, as `gpuserve local status --json` prints it."""
        apps = [
            {
                "id": app.id,
                "name": app.name or app.description,
                "state": api_pb2.AppState.Name(app.state).removeprefix("APP_STATE_").lower(),  # type: ignore[arg-type]
                "version": app.version,
                "containers": sum(task.app_id == app.id for task in self.scheduler.tasks.values()),
            }
            for app in self.registry.apps.values()
            if app.is_live
        ]
        pools = [
            {
                "function": self.registry.functions[pool.function_id].name,
                "containers": len(pool.tasks),
                "started": pool.started_total,
                "peak": pool.peak,
            }
            for pool in self.scheduler.pools.values()
            if pool.function_id in self.registry.functions
        ]
        return {
            "pid": os.getpid(),
            "home": str(self.home),
            "server_url": self.server_url,
            "uptime_s": round(time.time() - self.started_at, 1),
            "isolation": self.launcher.isolation,
            "image_mode": self.image_mode,
            "image_check": self.image_check,
            "containers": len(self.scheduler.tasks),
            "apps": apps,
            "pools": pools,
            "schedules": self.schedules.status(),
        }

    async def close(self) -> None:
        """Kill every container, close every socket, and leave the state on disk."""
        for job in self._jobs:
            job.cancel()
        if self._server is not None:
            self._server.close()
        if self.venvs is not None:
            await self.venvs.close()
        await self.scheduler.close()
        await self.ingress.close()
        await self._object_server.close()
        await self.launcher.close()
        self.store.close()
        self._session.end()
