"""A container's main process as an interpreter of its own, for an environment that is read when one starts.

Run as a file by `container_main`, with the number of an open descriptor that tells the rest.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]

_SOURCES = str(Path(__file__).parents[3])


def main(descriptor: int) -> NoReturn:
    """Run Modal's container runtime as ``python -m modal._container_entrypoint`` would."""
    with os.fdopen(descriptor) as told:
        request = json.load(told)
    code = 70
    sys.path[0] = _SOURCES  # found by its place: the variable that would name it is the container's own
    from gpuserve.engine.protocol import CONTAINER_ENTRYPOINT, adapt_runtime
    from gpuserve.engine.workers.container_main import forget_gpuserve, leave, settle_in
    from gpuserve.engine.workers.import_guard import Hidden

    try:
        sys.path.remove(_SOURCES)
        forget_gpuserve()
        settle_in(request["root"], None if request["hidden"] is None else Hidden(**request["hidden"]))
        adapt_runtime(Path(os.environ["MODAL_CONTAINER_ARGUMENTS_PATH"]).read_bytes())
        del sys.argv[1:]
        runpy.run_module(CONTAINER_ENTRYPOINT, run_name="__main__", alter_sys=True)
        code = 0
    except KeyboardInterrupt:
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 (the last line of a process: say why, then end)
        traceback.print_exc()
    leave(code)


if __name__ == "__main__":
    main(int(sys.argv[1]))
