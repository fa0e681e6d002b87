"""What the guard hides, in an interpreter of its own with distributions made for the purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import importlib, json, os, sys
from importlib import metadata
from gpuserve.engine.workers.import_guard import guard_imports, hidden_from
hidden = hidden_from(json.loads(sys.argv[1]))
for name in [name for name in sys.modules if name.startswith("gpuserve")]: del sys.modules[name]
guard_imports(hidden)
found = {}
for name in json.loads(sys.argv[2]):
    try: found[name] = importlib.import_module(name).__name__
    except ModuleNotFoundError as error: found[name] = [str(error), *getattr(error, "__notes__", [])]
found["metadata"] = sorted(one.name for one in metadata.distributions() if one.name.startswith("space-"))
print(json.dumps(found))
"""


def install(site: Path, name: str, *files: str, editable: Path | None = None) -> None:
    """Make a distribution as an installer leaves it: modules, metadata and the list of both."""
    info = site / f"{name.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    for file in files:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text("")
    if editable is not None:
        (info / "direct_url.json").write_text(json.dumps({"url": editable.as_uri(), "dir_info": {"editable": True}}))
        (site / f"__editable__.{name}.pth").write_text(f"{editable}\n")
        files = (*files, f"__editable__.{name}.pth")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.fixture
def look(tmp_path):
    site = tmp_path / "site"
    (tmp_path / "project" / "mine").mkdir(parents=True)
    (tmp_path / "project" / "mine" / "__init__.py").write_text("")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "stray.py").write_text("")
    install(site, "space-one", "space/one/__init__.py", "space/one/deep.py")
    install(site, "space-two", "space/two/__init__.py", "space/_native.abi3.so", "space/single.py")
    install(site, "mine", editable=tmp_path / "project")

    def run(brought: list[str], names: list[str]) -> dict:
        sources = Path(__file__).parents[2] / "src"
        path = os.pathsep.join(map(str, [site, tmp_path / "project", tmp_path / "loose", sources]))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(brought), json.dumps(names)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_of_a_namespace_only_the_parts_that_the_image_brings_are_found(look):
    found = look(["space-one"], ["space", "space.one.deep", "space.two", "space.single"])

    assert found["space"] == "space"
    assert found["space.one.deep"] == "space.one.deep"
    assert found["space.two"] == [
        "No module named 'space.two'",
        'This image does not bring it, though this machine has it: add .pip_install("space-two==1.5") to the image.',
    ]
    assert found["space.single"][0] == "No module named 'space.single'"
    assert found["metadata"] == ["space-one"]


def test_an_editable_install_and_a_folder_that_is_only_on_this_machines_path_are_hidden(look):
    found = look([], ["mine", "stray"])

    assert found["mine"][0] == "No module named 'mine'"
    assert 'pip_install("mine==1.5")' in found["mine"][1]
    assert found["stray"] == ["No module named 'stray'"]
    assert look(["mine"], ["mine"])["mine"] == "mine"
