"""A process that has imported modal's command line, and forks one that runs it for every request.

Half of what a short `modal run` costs is its imports, and the tests run more than a hundred of them. What runs is
`python -m modal` all the same: its own module, in a process, a folder and an environment of its own.

Each line on standard input is a request: ``{"arguments", "environment", "folder", "out", "error"}``; it is answered by
the pid, and once that one has ended by its exit code.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from typing import Any

import modal.__main__  # imported here, so that no fork has to


def become(wanted: dict[str, Any]) -> None:
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, wanted["out"], os.O_WRONLY | os.O_APPEND),
        (2, wanted["error"], os.O_WRONLY | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), number)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    sys.path.insert(0, wanted["folder"])  # as `python -m` puts it; with -P the first one is of PYTHONPATH
    sys.argv = [modal.__main__.__file__, *wanted["arguments"]]
    del sys.modules["modal.__main__"]
    runpy.run_module("modal", run_name="__main__", alter_sys=True)


def code_of(wanted: dict[str, Any]) -> int:
    try:
        become(wanted)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            sys.exit(code_of(json.loads(line)))  # by the ordinary way out: modal's own exit handlers run
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
