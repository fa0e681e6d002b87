"""The first moments of a container, between the fork and Modal's own runtime."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

from gpuserve.engine.protocol import ContainerRuntime
from gpuserve.engine.workers.import_guard import guard_imports
from gpuserve.engine.workers.namespaces import enter_namespace

__all__ = ["become_container"]

_PR_SET_PDEATHSIG = 1
# Source: modal 1.6.4: what lingers may "prevent runner shutdown for up to 30 seconds".
_LINGER_S = 30.0
_START_FAILED = 70  # EX_SOFTWARE of sysexits.h


def become_container(runtime: ContainerRuntime, folder: Path, descriptors: list[int]) -> NoReturn:
    """Turn this freshly forked process into the container that *folder* describes."""
    code = _START_FAILED
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
        for descriptor in descriptors:
            os.close(descriptor)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="replace")
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="replace")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        request: dict[str, Any] = json.loads((folder / "request.json").read_text())
        _prepare(runtime, folder, request)
        code = _run(runtime, folder / "arguments")
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 (the last line of a process: say why, then end)
        traceback.print_exc()
    _leave(code)


def _prepare(runtime: ContainerRuntime, folder: Path, request: dict[str, Any]) -> None:
    home = os.environ.get("HOME", "/root")
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH") if key in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update({"HOME": home, "PYTHONPATH": "/root", **request["environment"]})
    os.environ.update(
        {
            "MODAL_SERVER_URL": request["server_url"],
            "MODAL_TASK_ID": request["task_id"],
            "MODAL_IS_REMOTE": "1",
            "MODAL_ENVIRONMENT": request["environment_name"],
            "MODAL_IMAGE_ID": request["image_id"],
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
            "MODAL_CONFIG_PATH": str(folder / "modal.toml"),
        }
    )
    root = enter_namespace(folder, request["files"], request["volumes"])
    workdir = request["workdir"] or root
    Path(workdir).mkdir(parents=True, exist_ok=True)
    os.chdir(workdir)
    # what python -m would put first is ours, not the container's
    sys.path[:] = [root, *(entry for entry in sys.path if entry and entry != str(Path.cwd()))]
    for name in [name for name in sys.modules if name == "gpuserve" or name.startswith("gpuserve.")]:
        del sys.modules[name]
    guard_imports(request["packages"], root)
    # multiprocessing's "spawn" would run the pre-forked process again, without end
    main = types.ModuleType("__main__")
    main.__dict__.update({key: value for key, value in vars(runtime.module).items() if key != "__name__"})
    main.__dict__["__name__"] = "__main__"
    sys.modules["__main__"] = main
    sys.argv = [str(runtime.module.__file__)]


def _run(runtime: ContainerRuntime, arguments: Path) -> int:
    try:
        runtime.run(arguments.read_bytes())
    except runtime.reported:
        pass  # TaskResult told the engine
    except KeyboardInterrupt:
        pass  # the engine asked it to leave
    return 0


def _leave(code: int) -> NoReturn:
    """End as an interpreter would, but not later than the time allowed for what lingers."""
    deadline = time.monotonic() + _LINGER_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    try:
        atexit._run_exitfuncs()  # os._exit below skips them, and user code may have registered some
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)
