"""On the local engine, through the real client: attempts one after the other, a kill, MLflow, and a plain server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import modal
import pytest
from training_mlflow_server import runs_of

from gpuserve.engine import LocalEngine

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
EXAMPLE = Path(__file__).parents[2] / "examples/nightly_fine_tune"

CHAIN = """
import asyncio, os, pathlib, signal, time
import modal, gpuserve
app = modal.App("chain")
image = gpuserve.ImageSpec.debian("3.11").pip(
    "accelerate==1.15.0", "datasets==5.2.0", "huggingface_hub==2.4.0", "peft==0.21.2", "torch==2.13.0",
    "transformers==5.23.0", "trl==1.16.0",
)
image = image.local_dir(str(pathlib.Path(__file__).parent / "base"), "/root/base")

class Plain(gpuserve.FineTuneJob):
    base = gpuserve.FolderSource("/root/base", name="tiny")
    image = image
    name = "chain"
    steps, batch_size, max_length, checkpoint_every, log_every = 12, 4, 64, 4, 1
    learning_rate = 1e-2
    lora = gpuserve.Lora(rank=4, dropout=0.1)
    timeout_s, stop_before_s = 120, 119  # an attempt has one second

    def rows(self):
        marker = pathlib.Path("/gpuserve-runs/gpuserve-training/killed-" + self.run)
        if self.run == "killed" and not marker.exists():
            marker.write_text("once")
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"text": f"row {number} of the rows"} for number in range(40)]

@gpuserve.register(app)
class Chained(Plain):
    def rows(self):
        time.sleep(0.6)  # rows from far away: a second such step does not fit into the second of an attempt
        return Plain.rows(self)

@gpuserve.register(app, timeout_s=600, stop_before_s=60)
class Whole(Plain): pass

@app.local_entrypoint()
def main():
    import json
    attempts = []
    chained = Chained().train.remote("chained", on_attempt=attempts.append)
    whole = asyncio.run(Whole().train.remote.aio("whole"))
    killed = Whole().train.remote("killed")
    told = {"adapters": [one.adapter.split("--")[3] for one in (chained, whole, killed)],
            "attempts": [one.attempts for one in (chained, whole, killed)], "steps": [one.step for one in attempts]}
    print("TOLD " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def engine():
    pytest.importorskip("trl")
    with LocalEngine(image_check="warn") as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The example, copied, with the base that it makes."""
    made = tmp_path_factory.mktemp("nightly") / "app"
    shutil.copytree(EXAMPLE, made, ignore=shutil.ignore_patterns("base", "__pycache__"))
    subprocess.run([sys.executable, "make_base.py"], cwd=made, check=True, capture_output=True)
    (made / "chain.py").write_text(CHAIN)
    return made


@pytest.fixture
def cli(engine, folder):
    def run(*arguments):
        environment = {**os.environ, **engine.environment, "COLUMNS": "200"}
        command = [sys.executable, "-m", "modal", *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        return done.stdout

    return run


def test_a_chain_of_attempts_and_a_killed_container_end_with_the_bits_of_one_attempt(cli):
    printed = cli("run", "chain.py")
    told = json.loads(next(line for line in printed.splitlines() if line.startswith("TOLD "))[5:])
    assert len(set(told["adapters"])) == 1
    assert told["attempts"][0] == 12
    assert told["attempts"][1] == 1
    assert told["steps"] == list(range(1, 12))


def test_the_nightly_example_tracks_promotes_and_serves_and_a_night_done_twice_is_done_once(
    cli, engine, mlflow_server, folder
):
    cli("secret", "create", "mlflow-credentials", f"MLFLOW_TRACKING_URI={mlflow_server}")
    first = cli("run", "app.py", "--run", "2026-11-25")
    again = cli("run", "app.py", "--run", "2026-11-25")
    said = [line for line in first.splitlines() if line.startswith(("base: ", "nightly: "))]
    assert "promoted: True; eval_loss held against nothing in service before" in first
    assert len(said) == 2
    assert said[0].removeprefix("base: ") != said[1].removeprefix("nightly: ")
    assert [line for line in again.splitlines() if line.startswith("promoted:")] == [
        line for line in first.splitlines() if line.startswith("promoted:")
    ]
    [run] = runs_of(mlflow_server, "nightly-fine-tuning")
    assert run["info"]["status"] == "FINISHED"
    assert run["files"] == ["report.html", "report.json"]
    # another night, deployed and on time: the schedule's own function, called as the scheduler calls it
    cli("deploy", "app.py")
    with engine.connected():
        modal.Function.from_name("nightly-fine-tuning", "nightly").remote()
        served = subprocess.run(
            [sys.executable, "-m", "gpuserve.cli", "weights", "served", "--volume", "gpuserve-adapters", "--json"],
            env={**os.environ, **engine.environment}, cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert json.loads(served.stdout.splitlines()[-1])[0]["name"] == "nightly"
