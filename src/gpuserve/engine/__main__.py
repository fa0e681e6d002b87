"""`python -m gpuserve.engine --home PATH`: the engine in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from gpuserve.engine.server import LocalEngine, default_home
from gpuserve.exceptions import EngineError


def main() -> int:
    """Run the engine; write ``engine.json`` (0600) into its folder while it is up."""
    parser = argparse.ArgumentParser(prog="python -m gpuserve.engine")
    parser.add_argument("--home", type=Path, default=default_home())
    parser.add_argument("--image-check", choices=["error", "warn"], default="error")
    parser.add_argument("--tcp", action="store_true", help="listen on a loopback port instead of a unix socket")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        engine = LocalEngine(options.home, image_check=options.image_check, tcp=options.tcp).start()
    except EngineError as error:
        print(f"gpuserve: {error}", file=sys.stderr)
        return 2
    note = options.home / "engine.json"
    text = json.dumps({"pid": os.getpid(), **engine.environment})
    descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)  # it may be left over from another time
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    print(text, flush=True)
    stop.wait()
    note.unlink(missing_ok=True)
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
