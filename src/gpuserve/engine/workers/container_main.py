"""The main process of a container, from the fork to Modal's own runtime."""

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
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from gpuserve.engine.protocol import ContainerRuntime
from gpuserve.engine.workers.import_guard import Hidden, guard_imports, hidden_from
from gpuserve.engine.workers.namespaces import Isolation

__all__ = ["become_container", "forget_gpuserve", "leave", "needs_plain_start", "settle_in"]

# Source: modal 1.6.4: what lingers may "prevent runner shutdown for up to 30 seconds".
_LINGER_S = 30.0
# What an interpreter, its loader, or a library that the pre-forked process has imported reads when it starts.
_READ_AT_START = (
    "PYTHON",
    "LD_",
    "MALLOC_",
    "GLIBC_TUNABLES",
    "MODAL_",
    "LC_",
    "LANG",
    "PROTOCOL_BUFFERS_",
    "AIOHTTP_",
)
_PLAIN_START = Path(__file__).with_name("plain_start.py")


def needs_plain_start(environment: Mapping[str, str]) -> bool:
    """Whether a container with these variables must be a new interpreter, because it reads them as it starts.

    Examples:
        >>> needs_plain_start({"PYTHONHASHSEED": "0"}), needs_plain_start({"HF_HOME": "/models"})
        (True, False)
    """
    return any(name.startswith(_READ_AT_START) for name in environment)


def become_container(
    runtime: ContainerRuntime, isolation: Isolation, folder: Path, request: dict[str, Any]
) -> NoReturn:
    """Turn this freshly forked process into the main process of the container that *request* describes."""
    code = 70
    try:
        os.setsid()
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="replace")
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="replace")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        if isolation.user:
            _drop_capabilities()
        root = "/root" if isolation.mounts else str(folder / "root")
        _set_environment(root, folder, request)
        _enter_workdir(request["workdir"] or root)
        if request["venv"] is not None or needs_plain_start(request["environment"]):
            _start_plainly(request, root)
        time.tzset()
        forget_gpuserve()
        packages = request["packages"]
        settle_in(root, None if packages is None else hidden_from(packages))
        _pose_as(runtime)
        code = _run(runtime, folder / "arguments")
    except KeyboardInterrupt:
        code = 0  # the engine asked it to leave before it began
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 (the last line of a process: say why, then end)
        traceback.print_exc()
    leave(code)


def _drop_capabilities() -> None:
    """Give up what only the set-up of a user namespace needed, such as to mount and to unmount."""
    version_3 = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None, use_errno=True).capset(version_3, none)


def _set_environment(root: str, folder: Path, request: dict[str, Any]) -> None:
    home = os.environ.get("HOME", "/root")
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH") if key in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.environ.update({"HOME": home, "PYTHONPATH": root, **request["environment"]})
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
    if request["venv"] is not None:
        _use_environment(*request["venv"])


def _use_environment(folder: str, packages: str) -> None:
    """Put an image's environment first, and modal's own client where Modal has it."""
    os.environ["PATH"] = os.pathsep.join([f"{folder}/bin", os.environ.get("PATH", os.defpath)])
    os.environ["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], packages])


def _enter_workdir(workdir: str) -> None:
    Path(workdir).mkdir(parents=True, exist_ok=True)
    os.chdir(workdir)


def _start_plainly(request: dict[str, Any], root: str) -> NoReturn:
    """Become a new interpreter, which reads the variables that this one could not."""
    forget_gpuserve()
    packages = request["packages"]
    hidden = None if packages is None else asdict(hidden_from(packages))
    if hidden is not None:
        own = os.environ["PYTHONPATH"].split(os.pathsep)
        hidden["folders"] = [folder for folder in hidden["folders"] if folder not in own]
    told = os.memfd_create("start", 0)
    os.write(told, json.dumps({"root": root, "hidden": hidden}).encode())
    os.lseek(told, 0, os.SEEK_SET)
    python = sys.executable if request["venv"] is None else f"{request['venv'][0]}/bin/python"
    os.execv(python, [python, str(_PLAIN_START), str(told)])  # noqa: S606 (no shell is wanted)


def settle_in(root: str, hidden: Hidden | None) -> None:
    """Look for modules in *root* first, and hide what the image does not bring."""
    sys.path[:] = [root, *(entry for entry in sys.path if entry not in {root, ""})]
    if hidden is not None:
        guard_imports(hidden)


def forget_gpuserve() -> None:
    """Leave nothing of gpuserve in this interpreter: user code may not find it by accident."""
    for name in [name for name in sys.modules if name == "gpuserve" or name.startswith("gpuserve.")]:
        del sys.modules[name]


def _pose_as(runtime: ContainerRuntime) -> None:
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


def _end_pools() -> None:
    for call in reversed(threading._threading_atexits):  # type: ignore[attr-defined]
        call()


def leave(code: int) -> NoReturn:
    """End as an interpreter would, but not later than the time allowed for what lingers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is leaving already
    deadline = time.monotonic() + _LINGER_S
    # idle threads of pools wait for this word of the interpreter's, which comes before it waits for them
    ending = threading.Thread(target=_end_pools, daemon=True)
    ending.start()
    ending.join(_LINGER_S)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, deadline - time.monotonic()))
    try:
        atexit._run_exitfuncs()  # os._exit below skips them, and user code may have registered some
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)
