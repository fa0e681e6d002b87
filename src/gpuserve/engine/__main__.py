"""`python -m gpuserve.engine --home PATH`: the engine in a process of its own, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from gpuserve.engine.control import Control, Ending
from gpuserve.engine.home import default_home, unusable
from gpuserve.engine.running import CONTROL
from gpuserve.engine.server import IMAGE_CHECKS, IMAGE_MODES, ISOLATIONS, LocalEngine
from gpuserve.exceptions import EngineError

# From this size on, a start puts the log aside; one such is kept. Source: our choice; an engine writes warnings alone.
_LOG_BYTES = 1 << 20


def main() -> int:
    """Run the engine; its folder has ``engine.json`` (0600) while it is up, and the first output line is the same."""
    options = _parser().parse_args()
    stop = Ending(signal.SIGTERM, signal.SIGINT)
    told = os.dup(sys.stderr.fileno())  # where whoever started us reads, whatever standard error becomes
    try:
        home: Path = options.home or default_home()
        if options.log is not None:
            _log_to(options.log, home)
        _serve(options, home, stop, told)
    except EngineError as error:
        os.write(told, f"Error: {error}\n".encode())
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpuserve.engine")
    parser.add_argument("--home", type=Path, help="the state folder (default: GPUSERVE_HOME)")
    parser.add_argument("--image-mode", choices=IMAGE_MODES, help="what containers run on")
    parser.add_argument("--image-check", choices=IMAGE_CHECKS, default=IMAGE_CHECKS[0])
    parser.add_argument("--isolation", choices=ISOLATIONS, help="how containers are kept apart")
    parser.add_argument("--port", type=int, help="listen on this loopback port (0: any) instead of a unix socket")
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for another engine to end")
    parser.add_argument("--log", type=Path, help="write standard error here once started")
    parser.add_argument(
        "--transient", action="store_true", help="end when standard input and every connection that holds are closed"
    )
    return parser


def _log_to(log: Path, home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size >= _LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise unusable(home, error) from error
    os.dup2(descriptor, sys.stderr.fileno())
    os.close(descriptor)


def _serve(options: argparse.Namespace, home: Path, stop: Ending, told: int) -> None:
    engine = LocalEngine(
        home,
        image_mode=options.image_mode,
        image_check=options.image_check,
        port=options.port,
        patience_s=options.patience,
        isolation=options.isolation,
    ).start()
    with contextlib.closing(engine):
        path = engine.core.run_folder / "control.sock"
        secret = engine.environment["MODAL_TOKEN_SECRET"]
        asked = {
            "status": engine.status,
            "prune": lambda: dict(zip(("removed", "freed_bytes"), engine.prune_images(), strict=True)),
        }
        with (
            contextlib.closing(Control(path, secret, asked, stop, transient=options.transient)) as control,
            _note(engine, path) as text,
        ):
            if options.transient:
                threading.Thread(target=_watch_input, args=(control,), daemon=True).start()
            with contextlib.suppress(BrokenPipeError):  # whoever started us has gone: we stay
                print(text, flush=True)
            os.dup2(sys.stderr.fileno(), told, inheritable=False)
            stop.wait()
            engine.close()


@contextlib.contextmanager
def _note(engine: LocalEngine, control: Path) -> Iterator[str]:
    """``engine.json``: how to reach this engine; it appears whole, and goes with the engine."""
    text = json.dumps({"pid": os.getpid(), CONTROL: str(control), **engine.environment})
    note = engine.home / "engine.json"
    draft = note.with_suffix(".json.new")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        draft.rename(note)
    except OSError as error:
        raise unusable(engine.home, error) from error
    try:
        yield text
    finally:
        note.unlink(missing_ok=True)


def _watch_input(control: Control) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    control.leave()


if __name__ == "__main__":
    sys.exit(main())
