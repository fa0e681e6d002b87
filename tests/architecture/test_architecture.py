"""The rules of the house that a linter has no word for."""

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gpuserve
from gpuserve.engine.container_rpcs import CONTAINER_RPCS
from gpuserve.engine.coverage import NOT_BUILT, built_rpcs, render
from gpuserve.engine.protocol import RPCS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "gpuserve").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_every_exported_name_exists_and_nothing_else_is_public():
    for name in gpuserve.__all__:
        assert getattr(gpuserve, name) is not None
    assert set(gpuserve._HOMES) | {"__version__"} == set(gpuserve.__all__)
    with pytest.raises(AttributeError, match="no attribute 'WarmServer'"):
        _ = gpuserve.WarmServer


def test_every_module_says_what_it_exports():
    for path, tree in TREES.items():
        names = [
            node.targets[0].id for node in tree.body if isinstance(node, ast.Assign) and hasattr(node.targets[0], "id")
        ]
        empty = len(tree.body) <= 1
        if empty or path.name == "__main__.py" or "quickstart/app.py" in str(path):
            continue
        assert "__all__" in names, f"{path} has no __all__"


def test_files_stay_under_400_lines():
    long = {str(path): len(path.read_text().splitlines()) for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]}
    assert {path: lines for path, lines in long.items() if lines >= 400} == {}


def test_a_bare_import_loads_neither_torch_nor_engine_nor_command_line():
    program = "import sys, json, gpuserve; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    heavy = ("torch", "numpy", "modal", "fastapi", "rich", "click", "gpuserve.engine", "gpuserve.cli", "grpclib")
    assert [name for name in loaded if name.startswith(heavy)] == []


def test_the_builders_load_no_torch_no_engine_and_no_web_framework():
    program = "import sys, json; from gpuserve import WarmModelServer, register; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    heavy = ("torch", "numpy", "fastapi", "gpuserve.engine", "gpuserve.cli", "gpuserve.quickstart")
    assert [name for name in loaded if name.split(".")[0] in heavy or name.startswith(heavy)] == []


def test_an_engine_starts_without_the_client_that_it_serves():
    program = "import sys, json, gpuserve.engine.__main__; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert [name for name in loaded if name.split(".")[0] in {"modal", "synchronicity", "torch"}] == []


def test_private_names_of_modal_stand_in_one_file():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                private = module.startswith(("modal._", "modal_proto")) or "._" in module
                assert not private or path.name == "protocol.py", f"{path}:{node.lineno} imports {module}"


def test_nothing_unpickles_evaluates_or_starts_a_shell():
    banned_modules = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert banned_modules.isdisjoint(alias.name.partition(".")[0] for alias in node.names), path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in banned_modules, path
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert vanishes under -O"
        for call in calls(tree):
            name = getattr(call.func, "id", "")
            assert name not in {"eval", "exec", "compile", "__import__"}, f"{path}:{call.lineno}"
            for keyword in call.keywords:
                literal_true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                assert not (keyword.arg in {"shell", "trust_remote_code", "allow_pickle"} and literal_true), path


def test_sql_is_literal():
    for path in (path for path in SOURCES if "engine" in path.parts):
        for call in calls(TREES[path]):
            if getattr(call.func, "attr", "") in {"execute", "executemany", "executescript", "one", "all"}:
                first = call.args[0] if call.args else None
                if isinstance(first, ast.JoinedStr | ast.BinOp):
                    pytest.fail(f"{path}:{call.lineno}: SQL is put together from strings")


def test_secrets_are_compared_in_constant_time():
    words = re.compile(r"(token|secret|api_key|digest|password)s?$")
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                sides = [node.left, *node.comparators]
                named = [one for one in sides if words.search(getattr(one, "attr", getattr(one, "id", "")) or "")]
                text = [one for one in sides if isinstance(one, ast.Constant)]
                assert not named or text, f"{path}:{node.lineno}: use hmac.compare_digest"


def test_every_rpc_of_the_wheel_is_known_to_be_built_or_not():
    listed = [name for group in NOT_BUILT for name in group.rpcs]
    assert len(listed) == len(set(listed))
    assert set(listed) | built_rpcs() == set(RPCS)
    assert set(listed) & built_rpcs() == set()
    assert set(RPCS) >= CONTAINER_RPCS


def test_the_coverage_page_is_the_one_that_is_generated():
    assert (ROOT / "docs/reference/rpc-coverage.md").read_text() == render()


def test_the_quickstart_pins_what_its_extra_installs():
    app = importlib.import_module("gpuserve.quickstart.app")
    pinned = set(app.Embedder.image.requirements())
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["quickstart"]
    assert pinned <= set(extra)


def test_the_project_speaks_of_gpuserve_alone():
    ours = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in ours:
        path = ROOT / name
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".html", ".yml"} and path != Path(__file__):
            assert "/work/" not in path.read_text(), name
