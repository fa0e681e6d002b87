"""`LocalEngine`: an engine in a background thread of this process.

Examples:
    >>> import modal
    >>> from gpuserve.engine import LocalEngine
    >>> with LocalEngine() as engine, engine.connected():
    ...     shelf = modal.Dict.from_name("shelf", create_if_missing=True)
    ...     shelf["book"] = "read"
    ...     shelf["book"]
    'read'
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpuserve.engine.core import Core
from gpuserve.engine.home import no_temporary_folder, take_home, unusable
from gpuserve.engine.protocol import forget_client
from gpuserve.engine.workers.schedule_clock import Clocks
from gpuserve.exceptions import EngineError

__all__ = ["IMAGE_CHECKS", "IMAGE_MODES", "ISOLATIONS", "LocalEngine"]

IMAGE_CHECKS = ("error", "warn")
IMAGE_MODES = ("host", "venv")
ISOLATIONS = ("auto", "namespaces", "links")
# Of a workspace of Modal's, which modal would take beside the token, or refuse. Source: modal 1.6.4's config.
_OTHER_CREDENTIALS = (
    "MODAL_PROFILE", "MODAL_OAUTH_REFRESH_TOKEN", "MODAL_OAUTH_CLIENT_ID", "MODAL_OAUTH_CLIENT_SECRET",
    "MODAL_OAUTH_JWT_KEY",
)  # fmt: skip
_START_TIMEOUT_S = 60.0
_PRUNE_LIMIT_S = 600.0
_MOST_PORT = 65535


class LocalEngine:
    """A local Modal control plane for as long as the ``with`` block runs.

    Args:
        home: The state folder. ``None``: an empty one that is removed at the end.
        image_mode: ``"host"`` runs containers on this interpreter, ``"venv"`` on an environment that is built for
            each image. ``None``: what the variable ``GPUSERVE_IMAGE_MODE`` says, else ``"host"``.
        image_check: In host mode, ``"error"`` refuses images whose pins differ from this interpreter;
            ``"warn"`` says so.
        port: Listen on this port of 127.0.0.1 (0: any free one) instead of a unix socket.
        patience_s: How long to wait for another engine on the same folder to end.
        isolation: ``"auto"`` keeps containers apart as well as this machine allows, ``"namespaces"`` refuses
            to start without mount namespaces, ``"links"`` does without them. ``None``: what the variable
            ``GPUSERVE_ISOLATION`` says, else ``"auto"``.
        clocks: What time it is for schedules, where a test sets the time.
    """

    def __init__(
        self,
        home: Path | None = None,
        *,
        image_mode: str | None = None,
        image_check: str = "error",
        port: int | None = None,
        patience_s: float = 0.0,
        isolation: str | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        """Check the arguments; `start` does the work.

        Raises:
            EngineError: If an argument is not allowed.
        """
        isolation = isolation or os.environ.get("GPUSERVE_ISOLATION") or "auto"
        if isolation not in ISOLATIONS:
            raise EngineError(
                f"isolation={isolation!r} is not allowed: it (or GPUSERVE_ISOLATION) must be 'auto', 'namespaces' "
                "or 'links'"
            )
        image_mode = image_mode or os.environ.get("GPUSERVE_IMAGE_MODE") or "host"
        if image_mode not in IMAGE_MODES:
            raise EngineError(
                f"image_mode={image_mode!r} is not allowed: it (or GPUSERVE_IMAGE_MODE) must be 'host' or 'venv'"
            )
        if image_check not in IMAGE_CHECKS:
            raise EngineError(f"image_check={image_check!r} is not allowed: it must be 'error' or 'warn'")
        if port is not None and not 0 <= port <= _MOST_PORT:
            raise EngineError(f"port={port} is not allowed: it must be 0 (any free one) to {_MOST_PORT}, or None")
        self._temporary = None if home else _temporary_home()
        self.home = Path(home or self._temporary.name).absolute()  # type: ignore[union-attr]
        self._image_check, self._port, self._patience_s = image_check, port, patience_s
        self._isolation, self._image_mode, self._clocks = isolation, image_mode, clocks
        self._loop: asyncio.AbstractEventLoop | None = None
        self._core: Core | None = None
        self._thread: threading.Thread | None = None
        self._lock: int | None = None

    def start(self) -> Self:
        """Start, and return when clients can connect.

        Raises:
            StateError: If the state folder is in use, damaged, too new, full or not writable.
            PortInUseError: If another process listens on the port.
        """
        self._lock = take_home(self.home, patience_s=self._patience_s)
        ready = threading.Event()
        failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(ready, failed), name="gpuserve-engine", daemon=True)
        self._thread.start()
        try:
            is_ready = ready.wait(_START_TIMEOUT_S)
        except KeyboardInterrupt:
            ready.wait(_START_TIMEOUT_S)  # a moment: what has begun to start can only be stopped once it has
            self.close()
            raise
        if not is_ready:
            self._tell_where_it_stands()
            raise EngineError(
                f"the engine did not start within {_START_TIMEOUT_S:.0f} s; where it stands is told above"
            )
        if failed:
            self._thread.join()
            self._release()
            raise failed[0]
        return self

    def _tell_where_it_stands(self) -> None:
        # the process's own: what a notebook or a test puts in its place may have no descriptor
        faulthandler.dump_traceback(2)
        for task in asyncio.all_tasks(self._loop) if self._loop else ():
            task.print_stack(file=sys.__stderr__)

    def _run(self, ready: threading.Event, failed: list[BaseException]) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            try:
                runner.run(self._open())
            except BaseException as error:  # noqa: BLE001 (handed to the thread that called start)
                failed.append(error)
                return
            finally:
                ready.set()
            runner.run(self._until_stopped())

    async def _open(self) -> None:
        self._stop = asyncio.Event()
        try:
            self._core = Core(
                self.home,
                image_check=self._image_check,
                port=self._port,
                isolation=self._isolation,
                image_mode=self._image_mode,
                clocks=self._clocks,
            )
        except OSError as error:
            raise unusable(self.home, error) from error
        try:
            await self._core.start()
        except BaseException:
            await self._core.close()
            raise

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        await self.core.close()

    @property
    def core(self) -> Core:
        """The engine's parts, while it runs."""
        if self._core is None:
            raise EngineError("the engine is not running: use `with LocalEngine() as engine:`")
        return self._core

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that point a modal client at this engine, and away from any other."""
        core = self.core
        return {
            "MODAL_SERVER_URL": core.server_url,
            "MODAL_TOKEN_ID": core.token_id,
            "MODAL_TOKEN_SECRET": core.token_secret,
            "MODAL_CONFIG_PATH": str(self.home / "modal.toml"),
            **dict.fromkeys(_OTHER_CREDENTIALS, ""),
            "MODAL_DISABLE_API_PROXY": "1",
        }

    def status(self) -> dict[str, Any]:
        """The engine in figures."""
        if self._loop is None:
            raise EngineError("the engine is not running: use `with LocalEngine() as engine:`")

        async def read() -> dict[str, Any]:
            return self.core.status()

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(10)

    def prune_images(self) -> tuple[int, int]:
        """Remove the environments of images that no app uses: how many, and how many bytes that freed."""
        if self._loop is None:
            raise EngineError("the engine is not running: use `with LocalEngine() as engine:`")

        async def prune() -> tuple[int, int]:
            return self.core.images.prune()

        return asyncio.run_coroutine_threadsafe(prune(), self._loop).result(_PRUNE_LIMIT_S)

    def logs(self, app: str) -> str:
        """What the containers of an app have written so far; the newest app of that name."""
        found = [one for one in self.core.registry.apps.values() if app in {one.id, one.name, one.description}]
        entries = list(self.core.logs.of(found[-1].id).entries) if found else []
        return "".join(entry.text for entry in entries)

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Point this process's modal client, and programs that it starts, here for as long as the block runs.

        What a module has looked up elsewhere before, e.g. a volume at the top of an app's file, is looked up anew.
        """
        forget_client()
        wanted = {**self.environment, "MODAL_ENVIRONMENT": "main"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            forget_client()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def close(self) -> None:
        """Stop: containers are killed, what was deployed stays on disk."""
        if self._thread is not None and self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._core = self._loop = None
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.close()


def _temporary_home() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="gpuserve-home-")
    except OSError as error:
        raise no_temporary_folder(error) from error
