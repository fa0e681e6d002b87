"""The two servers on a local engine of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["deployed"]

_URLS = """
import json, modal
print(json.dumps([modal.Cls.from_name("serving", "Asgi")().web.get_web_url(),
                  modal.Server.from_name("serving", "Served").get_url()]))
"""


@contextlib.contextmanager
def deployed(case: str, key: str, port: int, folder: Path) -> Iterator[tuple[str, str]]:
    """Deploy one case with the modal CLI; the addresses by ``asgi`` and by ``server``, through the engine's ingress."""
    home = folder / f"engine-{case}"
    command = [sys.executable, "-m", "gpuserve.engine", "--home", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            told = {name: value for name, value in json.loads(line).items() if name.startswith("MODAL_")}
            environment = {**os.environ, **told, "BENCH_CASE": case, "BENCH_PORT": str(port)}

            def run(*arguments: str) -> str:
                whole = [sys.executable, *arguments]
                done = subprocess.run(whole, env=environment, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}")
                return done.stdout

            run("-m", "modal", "secret", "create", "bench-keys", f"GPUSERVE_API_KEYS=bench:{key}")
            run("-m", "modal", "deploy", "-m", "benchmarks.serving.deployed")
            asgi, served = json.loads(run("-c", _URLS))
            yield asgi, served
        finally:
            process.terminate()
