"""MLflow on a real server and W&B's own files: a killed run goes on as the same run, and tells no step twice."""

import os
import signal

import pytest
from training_mlflow_server import runs_of

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


def test_a_killed_run_goes_on_as_the_same_run_on_the_tracking_server(trainers, mlflow_server, tmp_path):
    declared = {"tracking": {"uri": mlflow_server, "experiment": "tests"}, "evaluation": 0.2}
    killed = trainers.run(root=tmp_path, run="one", declared=declared, after_events=10, signal=signal.SIGKILL)
    report = trainers.train(tmp_path, "one", declared=declared)
    assert killed["code"] == -signal.SIGKILL
    assert report["attempts"] == 2
    [run] = runs_of(mlflow_server, "tests")
    told = {one["key"]: one["value"] for one in run["data"]["params"]}
    assert run["info"]["status"] == "FINISHED"
    assert [one["step"] for one in run["losses"]] == list(range(1, 25))
    assert run["files"] == ["report.html", "report.json"]
    assert (told["lora.rank"], told["learning_rate"], int(told["dataset_size"]) > 50) == ("8", "0.01", True)
    assert "final/eval_loss" in {one["key"] for one in run["data"]["metrics"]}


def test_a_tracking_server_that_is_not_there_is_told_before_anything_is_trained(trainers, tmp_path):
    pytest.importorskip("mlflow")
    found = trainers.run(root=tmp_path, run="none", declared={"tracking": {"experiment": "tests"}})
    assert found["error"] == "TrainingError"
    assert "MLFLOW_TRACKING_URI is not set" in found["text"]


def test_offline_wandb_leaves_a_run_of_one_id_in_the_volume(trainers, tmp_path):
    pytest.importorskip("wandb")
    told = {"root": tmp_path, "run": "one", "declared": {"wandb": True}}
    killed = trainers.run(**told, after_events=10, signal=signal.SIGKILL)
    trainers.train(**told)
    assert killed["code"] == -signal.SIGKILL
    left = sorted((tmp_path / "runs/tuned/one/wandb/wandb").glob("offline-run-*"))
    assert len(left) == 2
    assert len({one.name.rpartition("-")[2] for one in left}) == 1
    assert all(any(path.suffix == ".wandb" for path in one.iterdir()) for one in left)
    assert os.environ.get("WANDB_API_KEY") is None
