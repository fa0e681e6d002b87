"""What is measured, as any Modal app would do it: ``python workload.py REPORT COLD WARM MAP``.

The client's side runs in the process that is started; the functions run in containers of whatever control plane the
environment points at.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import modal

app = modal.App("engine-benchmark")
SEVERAL = 2
COLD = 12


@app.function(max_containers=1)
def one(x: int) -> int:
    """A trivial function in one container."""
    return x + 1


@app.function(max_containers=SEVERAL)
def several(x: int) -> int:
    """The same in several."""
    return x + 1


# An interpreter reads such a variable as it starts, so the engine cannot fork this image's containers.
plain_image = modal.Image.debian_slim().env({"PYTHONHASHSEED": "0"})


def _cold(name: str, **options: Any) -> Any:
    def cold(x: int) -> int:
        return x + 1

    cold.__name__ = cold.__qualname__ = name
    return app.function(max_containers=1, **options)(cold)


for number in range(COLD):
    # each a function, so a container, of its own
    globals()[f"cold_{number}"] = _cold(f"cold_{number}")
    globals()[f"plain_{number}"] = _cold(f"plain_{number}", image=plain_image)


def main(cold: int, warm: int, mapped: int) -> dict[str, Any]:
    """Measure, in seconds."""
    report: dict[str, Any] = {"cold_s": [], "plain_s": [], "warm_s": []}
    with app.run():
        for kind in ("cold", "plain"):
            for number in range(cold):
                begun = time.perf_counter()
                globals()[f"{kind}_{number}"].remote(number)
                report[f"{kind}_s"].append(time.perf_counter() - begun)
        for number in range(50):
            one.remote(number)
        for number in range(warm):
            begun = time.perf_counter()
            one.remote(number)
            report["warm_s"].append(time.perf_counter() - begun)
        list(several.map(range(200)))
        for name, function in (("map_one_s", one), ("map_several_s", several)):
            begun = time.perf_counter()
            found = sum(function.map(range(mapped)))
            report[name] = time.perf_counter() - begun
            if found != mapped * (mapped + 1) // 2:
                raise RuntimeError(f"{name}: the sum is {found}")
    return report


if __name__ == "__main__":
    target, *counts = sys.argv[1:]
    Path(target).write_text(json.dumps(main(*map(int, counts))))
