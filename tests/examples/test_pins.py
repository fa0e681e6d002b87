"""The pins of every example: they exist, and they go together, with what gpuserve itself needs beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from uv import find_uv_bin

from gpuserve.specs.image_lock import LOCK_PLATFORM

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]  # the indexes of this day are asked

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/app.py"))

# Imports an example, and prints what each of its images installs, as it is handed to modal.
PROBE = """
import importlib.util, json, sys
from gpuserve.builders.lowering import image as lowering
from gpuserve.specs.image_layers import Packages

found, layers_of = [], lowering._layers

def recorded(spec, *, http):
    layers = layers_of(spec, http=http)
    for layer in layers:
        if isinstance(layer, Packages):
            found.append({"python": spec.base.python, "requirements": layer.requirements,
                          "indexes": [one for one in (layer.index, layer.extra_index) if one is not None]})
    return layers

lowering._layers = recorded
sys.path.insert(0, ".")
loader = importlib.util.spec_from_file_location("app", "app.py")
module = sys.modules["app"] = importlib.util.module_from_spec(loader)
loader.loader.exec_module(module)
print(json.dumps(found))
"""


def installed_by(folder: str) -> list[dict[str, Any]]:
    """What the images of an example install, each set of pins once."""
    # as in a container, where files that an example makes first are not looked for
    environment = {**os.environ, "MODAL_IS_REMOTE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=environment, cwd=EXAMPLES / folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {json.dumps(one, sort_keys=True) for one in json.loads(done.stdout.splitlines()[-1])}
    return [json.loads(one) for one in sorted(found)]


def resolve(one: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [find_uv_bin(), "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--no-config"]
    command += ["--python-version", one["python"], "--python-platform", LOCK_PLATFORM]
    for index in one["indexes"]:
        command += ["--index", index]
    asked = "\n".join(one["requirements"])
    return subprocess.run(command, input=asked, capture_output=True, text=True, check=False)


def out_of_reach(index: str) -> bool:
    try:
        httpx.get(index, timeout=20)
    except httpx.TransportError:
        return True
    return False


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_pins_of_an_example_exist_and_go_together(folder):
    found = installed_by(folder)
    assert found, "every image brings at least what gpuserve needs"
    unread = {index for one in found for index in one["indexes"] if out_of_reach(index)}
    for one in found:
        if unread & set(one["indexes"]):
            continue
        done = resolve(one)
        assert done.returncode == 0, f"{one['requirements']}: {done.stderr}"
        for requirement in one["requirements"]:
            name, _, version = requirement.partition("==")
            wanted = f"{name.partition('[')[0].lower().replace('_', '-')}=={version}"
            assert wanted in done.stdout.splitlines(), (wanted, done.stdout)
    if unread:
        pytest.skip(f"the rest of {folder} was resolved; out of reach from here: {', '.join(unread)}")


def test_pins_that_do_not_go_together_are_found_out():
    done = resolve({"python": "3.11", "requirements": ["pydantic==2.14.4", "pydantic-core==2.0.0"], "indexes": []})
    assert done.returncode != 0
    assert "unsatisfiable" in done.stderr
