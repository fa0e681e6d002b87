"""`LocalEngine`: an engine in a background thread of this process.

Examples:
    >>> from gpuserve.engine import LocalEngine  # doctest: +SKIP
    >>> with LocalEngine() as engine:  # doctest: +SKIP
    ...     subprocess.run(["modal", "run", "app.py"], env={**os.environ, **engine.environment})
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpuserve.engine.core import Core
from gpuserve.exceptions import EngineError, StateError

__all__ = ["LocalEngine", "default_home"]

_START_TIMEOUT_S = 60.0


def default_home() -> Path:
    """The state folder: ``GPUSERVE_HOME``, or the user's own state folder."""
    chosen = os.environ.get("GPUSERVE_HOME")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "gpuserve"


class LocalEngine:
    """A local Modal control plane for as long as the ``with`` block runs.

    Args:
        home: The state folder. ``None``: an empty one that is removed at the end.
        image_check: ``"error"`` refuses images whose pins differ from this interpreter; ``"warn"`` says so.
        tcp: Listen on a loopback port instead of a unix socket.
    """

    def __init__(self, home: Path | None = None, *, image_check: str = "error", tcp: bool = False) -> None:
        """Check the arguments; `start` does the work."""
        if image_check not in {"error", "warn"}:
            raise EngineError(f"image_check={image_check!r} is not allowed: it must be 'error' or 'warn'")
        self._temporary = None if home else tempfile.TemporaryDirectory(prefix="gpuserve-home-")
        self.home = home or Path(self._temporary.name)  # type: ignore[union-attr]
        self._image_check, self._tcp = image_check, tcp
        self._loop: asyncio.AbstractEventLoop | None = None
        self._core: Core | None = None
        self._thread: threading.Thread | None = None
        self._lock: int | None = None

    def start(self) -> Self:
        """Start, and return when clients can connect.

        Raises:
            StateError: If the state folder is in use, damaged, too new or not writable.
        """
        self._lock = _take(self.home)
        ready = threading.Event()
        failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(ready, failed), name="gpuserve-engine", daemon=True)
        self._thread.start()
        if not ready.wait(_START_TIMEOUT_S):
            raise EngineError(f"the engine did not start within {_START_TIMEOUT_S:.0f} s")
        if failed:
            self._thread.join()
            self._release()
            raise failed[0]
        return self

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
        self._core = Core(self.home, image_check=self._image_check, tcp=self._tcp)
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
        }

    def status(self) -> dict[str, Any]:
        """The engine in figures."""
        if self._loop is None:
            raise EngineError("the engine is not running: use `with LocalEngine() as engine:`")

        async def read() -> dict[str, Any]:
            return self.core.status()

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(10)

    def close(self) -> None:
        """Stop: containers are killed, what was deployed stays on disk."""
        if self._thread is not None and self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
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


def _take(home: Path) -> int:
    """Lock the state folder; the kernel lets go of it when this process ends, however it ends."""
    path = home / "engine.lock"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"the engine's state folder {home} is not writable: {error.strerror or error}. "
            "Set GPUSERVE_HOME to a folder that you may write."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise StateError(
            f"another engine (pid {owner or 'unknown'}) uses the state folder {home}. "
            "Stop it with `gpuserve local down`, or set GPUSERVE_HOME to another folder."
        ) from error
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock
