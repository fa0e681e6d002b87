"""Trainings in processes that are forked from one which has imported torch and TRL."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> Any:
    """A module beside this one; tests are no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name.removeprefix('training_')}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


tiny = _load("training_tiny")
_load("training_saver")
_load("training_dataset_hub")
training_mlflow = _load("training_mlflow_server")


class Trainers:
    """Runs one training after the other, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._python = folder, os.environ.get("GPUSERVE_TRAIN_PYTHON", sys.executable)
        self._process = subprocess.Popen(
            [self._python, str(HERE / "trainer.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.base = folder / "base"
        self.rows = tiny.write_rows(folder / "rows.jsonl", tiny.rows())
        self.run(do="base", folder=str(self.base))

    def run(self, **told: Any) -> dict[str, Any]:
        """What the job found, and its exit code as ``code``."""
        with tempfile.NamedTemporaryFile(suffix=".json") as out:
            told = {"base": str(getattr(self, "base", "")), "rows": str(getattr(self, "rows", "")), **told}
            told = {key: str(value) if isinstance(value, Path) else value for key, value in told.items()}
            self._process.stdin.write(json.dumps({**told, "out": out.name}) + "\n")
            self._process.stdin.flush()
            code = json.loads(self._process.stdout.readline())["code"]
            text = Path(out.name).read_text()
        return {"code": code, **(json.loads(text) if text else {})}

    @staticmethod
    def steps_of(root: Path, run: str) -> list[list[int]]:
        """The steps that each attempt has done, one list each, and where it began."""
        attempts: dict[int, list[int]] = {}
        for line in (root / f"{run}.steps").read_text().splitlines():
            told = json.loads(line)
            if "from" in told:
                attempts[told["pid"]] = [told["from"]]
            else:
                attempts[told["pid"]].append(told["step"])
        return list(attempts.values())

    def train(self, root: Path, run: str, **told: Any) -> dict[str, Any]:
        """Train to the end, and give the report."""
        root.mkdir(exist_ok=True)
        found = self.run(root=root, run=run, **told)
        assert "error" not in found, found["text"]
        assert found["code"] == 0
        return found["report"]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    for name in ("torch", "trl", "peft"):
        pytest.importorskip(name) if importlib.util.find_spec(name) is None else None
    running = Trainers(tmp_path_factory.mktemp("trainers"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("mlflow")
    with training_mlflow.running_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url
