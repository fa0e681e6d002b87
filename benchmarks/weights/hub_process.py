"""The tests' loopback hub, in a process of its own, serving the files of one folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

_HUB = Path(__file__).parents[2] / "tests" / "weights" / "hub.py"
_PIECE = 1 << 20


def _hub_module() -> Any:
    spec = importlib.util.spec_from_file_location("weights_hub", _HUB)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{_HUB} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Serve until standard input ends; the first line says where."""
    module = _hub_module()
    with module.running_hub() as hub:
        hub.commits = {module.COMMIT: {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}}
        hub.piece = _PIECE
        for data in hub.commits[module.COMMIT].values():
            module.sha256(data), module.git_oid(data)  # known before anybody is timed
        print(hub.url, module.COMMIT, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
