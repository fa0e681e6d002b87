"""Engines in processes of their own: one is joined where it is up, and started where none is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from gpuserve.engine.home import unusable
from gpuserve.engine.running import CONTROL, Hold, Running, find_engine
from gpuserve.exceptions import EngineError

__all__ = ["EngineOptions", "held_engine", "keep_engine"]

_START_LIMIT_S = 60.0
# An engine that has just ended still holds its folder for a moment. Source: our choice.
_PATIENCE_S = 2.0
_END_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is started with; ``None`` where the user left it open.

    Attributes:
        image_check: ``"error"`` or ``"warn"``.
        image_mode: ``"host"`` or ``"venv"``.
        port: A loopback port (0: any free one) instead of a unix socket.
    """

    image_check: str | None = None
    port: int | None = None
    image_mode: str | None = None

    def arguments(self) -> list[str]:
        """The engine's own command line."""
        port = [] if self.port is None else ["--port", str(self.port)]
        check = [] if self.image_check is None else ["--image-check", self.image_check]
        mode = [] if self.image_mode is None else ["--image-mode", self.image_mode]
        return [*port, *check, *mode]

    def check(self, engine: Running) -> None:
        """Refuse an engine that is up with other options than were asked for.

        Raises:
            EngineError: With both values, and the way out.
        """
        differs = None
        url = engine.environment["MODAL_SERVER_URL"]
        fits = url.startswith("http:") if self.port == 0 else url == f"http://127.0.0.1:{self.port}"
        if self.port is not None and not fits:
            differs = f"listens at {url}, and --port {self.port} was asked for"
        wanted = {"image_check": self.image_check, "image_mode": self.image_mode}
        facts = engine.status() if any(wanted.values()) else None
        for name, value in wanted.items():
            if facts is not None and value is not None and facts[name] != value:
                differs = f"has --{name.replace('_', '-')} {facts[name]}, and {value} was asked for"
        if differs is not None:
            raise EngineError(f"the engine that is up (pid {engine.pid}) {differs}. Stop it first: gpuserve local down")


@contextlib.contextmanager
def held_engine(home: Path, options: EngineOptions) -> Iterator[Running]:
    """The engine of *home*, up for as long as the block runs; it ends with the last that holds it.

    Raises:
        EngineError: If none is up, and none can be started.
    """
    hold = _join(home) or _start_and_hold(home, options)
    try:
        options.check(hold.engine)
        yield hold.engine
    finally:
        hold.release()


def keep_engine(home: Path, options: EngineOptions) -> tuple[Running, bool]:
    """The engine of *home*, up until it is stopped; and whether it was up before.

    Raises:
        EngineError: If none is up, and none can be started.
    """
    with _starting(home):
        engine = find_engine(home)
        if engine is not None:
            options.check(engine)
            if engine.keep():
                return engine, True
        with _started(home, options) as engine:
            if not engine.keep():
                raise EngineError("the engine ended as soon as it was up; try again")
            return engine, False


def _join(home: Path) -> Hold | None:
    engine = find_engine(home)
    return engine.hold() if engine is not None else None


def _start_and_hold(home: Path, options: EngineOptions) -> Hold:
    with _starting(home):
        hold = _join(home)  # somebody else may have started one while we waited
        if hold is not None:
            return hold
        with _started(home, options) as engine:
            hold = engine.hold()
        if hold is None:
            raise EngineError("the engine ended as soon as it was up; try again")
        return hold


@contextlib.contextmanager
def _starting(home: Path) -> Iterator[None]:
    """One at a time: the others wait, and find an engine that is up."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise unusable(home, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def _started(home: Path, options: EngineOptions) -> Iterator[Running]:
    """A new engine, which ends after the block unless it is held or kept by then.

    It is so from its first moment, by its standard input: an interrupt may strike before we know its pid.
    """
    log = home / "engine.log"
    command = [sys.executable, "-P", "-m", "gpuserve.engine", "--transient", "--home", str(home), "--log", str(log)]
    child = subprocess.Popen(
        [*command, "--patience", str(_PATIENCE_S), *options.arguments()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        with contextlib.closing(child.stdout), contextlib.closing(child.stderr):  # type: ignore[type-var]
            note = _first_line(child, log)
        environment = {key: str(value) for key, value in note.items() if key.startswith("MODAL_")}
        yield Running(child.pid, environment, note[CONTROL])
    except BaseException:
        _end(child)
        raise
    finally:
        if child.stdin is not None:
            child.stdin.close()
    child.returncode = 0  # it outlives us, or ends by itself: nothing is left to wait for


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_END_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _first_line(child: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    out, errors = child.stdout, child.stderr
    if out is None or errors is None:
        raise EngineError("the engine was started without pipes")
    if not select.select([out], [], [], _START_LIMIT_S)[0]:
        raise EngineError(f"the engine did not start within {_START_LIMIT_S:.0f} s; its log: {log}")
    line = out.readline()
    if line:
        note: dict[str, Any] = json.loads(line)
        return note
    said = errors.read().decode(errors="replace").strip()
    if said.startswith("Error: "):
        raise EngineError(said.removeprefix("Error: "))
    with contextlib.suppress(OSError):
        said = said or log.read_text(errors="replace").strip()
    last = said.splitlines()[-1] if said else f"it left with exit code {child.wait()} and without a word"
    raise click.ClickException(f"the engine did not start: {last} (its log: {log})")
