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
from gpuserve.runtime.training.rows import checked_rows
from gpuserve.runtime.weights.aliases import ServedAlias

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]
EXAMPLE = Path(__file__).parents[2] / "examples/nightly_fine_tune"

CHAIN = """
import asyncio, json, os, pathlib, signal, time
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

@gpuserve.register(app, timeout_s=600, stop_before_s=60)
class Preempted(Plain):
    def rows(self):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        marker = pathlib.Path("/gpuserve-runs/gpuserve-training/preempted-" + self.run)
        if not marker.exists():
            marker.write_text("once")
            steps = iter(range(1, 13))

            def stepped(*_):  # in the sixth step the first container waits until it has been told to go
                if next(steps) == 6:
                    modal.Queue.from_name("preempted").put(os.environ["MODAL_TASK_ID"])
                    modal.Queue.from_name("told-to-go", create_if_missing=True).get(timeout=100)

            register_optimizer_step_post_hook(stepped)
        return Plain.rows(self)

@gpuserve.register(app, timeout_s=600, stop_before_s=60)
class FromVolume(gpuserve.FineTuneJob):
    base, image, name, steps, max_length, lora = Plain.base, image, "from-volume", 1, 64, gpuserve.Lora(rank=4)
    dataset = gpuserve.VolumeDataset("rows-to-learn", "2026/rows.jsonl")

@app.local_entrypoint()
def preempt():
    report = Preempted().train.remote("preempted")
    whole = Whole().train.remote("undisturbed")
    told = {"adapters": [one.adapter.split("--")[3] for one in (report, whole)], "attempts": report.attempts}
    print("TOLD " + json.dumps(told))

@app.local_entrypoint()
def from_volume():
    print("TOLD " + json.dumps({"step": FromVolume().train.remote("one").step}))

@app.local_entrypoint()
def main():
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
def folder(engine, tmp_path_factory):
    """The example, copied, with the base that it makes."""
    made = tmp_path_factory.mktemp("nightly") / "app"
    shutil.copytree(EXAMPLE, made, ignore=shutil.ignore_patterns("base", "__pycache__"))
    subprocess.run([sys.executable, "make_base.py"], cwd=made, check=True, capture_output=True)
    (made / "chain.py").write_text(CHAIN)
    with engine.connected():
        modal.Volume.objects.create("rows-to-learn")
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


def told_in(printed):
    return json.loads(next(line for line in printed.splitlines() if line.startswith("TOLD "))[5:])


def test_a_chain_of_attempts_and_a_killed_container_end_with_the_bits_of_one_attempt(cli):
    told = told_in(cli("run", "chain.py::main"))
    assert len(set(told["adapters"])) == 1
    assert told["attempts"][0] == 12
    assert told["attempts"][1] == 1
    assert told["steps"] == list(range(1, 12))


def test_a_container_that_is_stopped_leaves_a_checkpoint_of_its_last_step_and_the_next_ends_with_the_same_bits(
    cli, engine, folder
):
    """`modal container stop` is what a preemption is: SIGINT, some seconds, and the input is given to another one."""
    environment = {**os.environ, **engine.environment, "COLUMNS": "200"}
    command = [sys.executable, "-m", "modal", "run", "chain.py::preempt"]
    with engine.connected():
        preempted, go = (modal.Queue.from_name(name, create_if_missing=True) for name in ("preempted", "told-to-go"))
        with subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True) as running:
            stopped = preempted.get(timeout=100)
            cli("container", "stop", stopped, "--yes")
            go.put("go")
            printed = running.communicate(timeout=400)[0]
    assert running.returncode == 0, printed[-6000:]
    told = told_in(printed)
    assert told["attempts"] == 2, printed[-6000:]
    assert len(set(told["adapters"])) == 1
    began = [json.loads(line) for line in printed.splitlines() if line.startswith("{") and '"from"' in line]
    assert [one["from"] for one in began] == [0, 6, 0]  # 4 was the last that was due


def test_rows_are_read_from_a_volume(cli, tmp_path):
    rows = [{"text": f"row {number} of a volume"} for number in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli("volume", "put", "rows-to-learn", str(tmp_path / "rows.jsonl"), "2026/rows.jsonl")
    assert told_in(cli("run", "chain.py::from_volume")) == {"step": 1}
    cli("volume", "get", "gpuserve-training", "from-volume/one/run.json", str(tmp_path / "run.json"))
    learnt = json.loads((tmp_path / "run.json").read_text())["rows"]
    assert learnt == checked_rows(rows, "auto", where="here").digest


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
    # another night, deployed and on time: the schedule's own function, called as the scheduler calls it, and twice
    cli("deploy", "app.py")
    assert len(in_service(engine)) == 1
    with engine.connected():
        fired = modal.Function.from_name("nightly-fine-tuning", "nightly")
        calls = [modal.FunctionCall.from_id(fired.remote()) for _ in range(2)]
        night, told_of = (call.get(timeout=300) for call in calls)
    assert (night.state, night.promoted, night.attempts) == ("finished", True, 1)
    assert night.run != "2026-11-25"
    assert told_of.to_json() == night.to_json()
    history = in_service(engine)
    assert [one.snapshot for one in history][1:] == [night.adapter]
    tracked = runs_of(mlflow_server, "nightly-fine-tuning")
    assert [one["info"]["status"] for one in tracked] == ["FINISHED"] * 2


def in_service(engine):
    """Every adapter that was put in service, the newest last."""
    with engine.connected():
        alias = b"".join(modal.Volume.from_name("gpuserve-adapters").read_file("aliases/nightly.json"))
    return ServedAlias.from_bytes(alias, name="nightly").history
