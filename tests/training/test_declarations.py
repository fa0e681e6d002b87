"""What a job declares: every fault at once, and what Modal is told."""

import modal
import pytest

import gpuserve
from gpuserve.builders.finetune import training_declaration_of

pytestmark = pytest.mark.wide

BASE = gpuserve.HubSource("org/model", revision="0" * 40)
ROWS = gpuserve.FileDataset("/root/rows.jsonl")


def job(**declared):
    return type("Tune", (gpuserve.FineTuneJob,), {"base": BASE, "dataset": ROWS, **declared})


def faults(**declared):
    with pytest.raises(gpuserve.DeclarationError) as error:
        job(**declared)
    return error.value.faults


def test_all_that_is_wrong_comes_in_one_error():
    found = faults(base=None, dataset=None, batch_size=0, gpu="H900", learning_rate=-1.0, train=1, seed="x")
    assert [fault.partition(" ")[0] for fault in found] == [
        "train", "gpu", "base", "seed", "batch_size", "learning_rate", "dataset",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"precision": "fp16"}, "its largest number is 65,504"),
        ({"lora": gpuserve.Lora(four_bit=True)}, "needs a GPU, for bitsandbytes"),
        ({"gate": gpuserve.Gate(metric="eval_loss", better="lower")}, "nothing is evaluated; write evaluation = 0.1"),
        ({"stop_before_s": 60, "timeout_s": 60}, "an attempt would end before its first step"),
        ({"evaluation": 1.0}, "a fraction must be above 0 and below 1"),
        ({"trainer": {"fp16": True, "output_dir": "x"}}, "fp16, output_dir cannot be set here"),
        ({"timeout_s": 90_000}, "less than or equal to 86400"),
        ({"rows": lambda _self: []}, "dataset is declared and rows() is overridden too"),
        ({"base": gpuserve.AliasSource("x")}, "base got"),
        ({"tracking": (gpuserve.WandbTracking(), gpuserve.WandbTracking())}, "tracking has wandb twice"),
        ({"budget": gpuserve.Budget(max_usd_per_hour=1), "gpu": "H100"}, "budget allows $1.00"),
    ],
)
def test_each_fault_says_what_to_write(declared, told):
    assert told in "\n".join(faults(**declared))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: gpuserve.FileDataset("/root/rows.csv"), "is neither .jsonl nor .parquet"),
        (lambda: gpuserve.VolumeDataset("v", "../rows.jsonl"), "leads out of the volume"),
        (lambda: gpuserve.MlflowTracking(uri="http://me:secret@host"), "holds a password"),
        (lambda: gpuserve.Gate(metric="eval_loss", better="less"), "better"),
    ],
)
def test_parts_are_checked_when_they_are_made(make, told):
    with pytest.raises(gpuserve.DeclarationError, match=told):
        make()


def test_modal_is_told_of_one_container_its_volumes_and_retries(monkeypatch):
    app, told = modal.App("tuning"), {}
    real = app.cls
    monkeypatch.setattr(app, "cls", lambda **arguments: told.update(arguments) or real(**arguments))
    secret = gpuserve.SecretSpec(name="mlflow-credentials", required_keys=("MLFLOW_TRACKING_URI",))
    tune = gpuserve.register(app, gpu="A100-80GB")(
        job(
            image=gpuserve.ImageSpec.debian("3.11").pip("torch==2.13.0"),
            dataset=gpuserve.VolumeDataset("feedback", "rows.jsonl"),
            tracking=gpuserve.MlflowTracking(secret=secret),
            timeout_s=7200,
        )
    )
    assert isinstance(tune, modal.Cls)
    assert str(tune.adapter().source) == "the served alias tune"
    assert sorted(told["volumes"]) == [
        "/gpuserve-dataset/feedback", "/gpuserve-runs/gpuserve-training", "/gpuserve-weights/gpuserve-adapters",
        "/gpuserve-weights/gpuserve-weights",
    ]  # fmt: skip
    assert (told["gpu"], told["max_containers"], told["timeout"]) == ("A100-80GB", 1, 7200)
    assert told["retries"].max_retries == 3
    assert len(told["secrets"]) == 1
    with pytest.raises(gpuserve.RegistrationError, match="cannot be subclassed"):

        class Again(tune):
            pass


def test_a_job_that_is_on_no_app_says_how_to_train():
    with pytest.raises(gpuserve.RegistrationError, match=r"write @gpuserve.register\(app\)"):
        _ = job()().train
    with pytest.raises(gpuserve.DeclarationError, match="image is missing"):
        gpuserve.register(modal.App("none"))(job())


def test_numbers_that_a_run_depends_on_are_its_identity_and_what_it_runs_on_is_not():
    one = training_declaration_of(job()).identity
    same = training_declaration_of(job(gpu="H100", timeout_s=600, checkpoint_every=7, retries=0)).identity
    other = training_declaration_of(job(learning_rate=1e-3, lora=gpuserve.Lora(rank=4))).identity
    assert one == same
    assert [name for name in one if one[name] != other[name]] == ["learning_rate", "lora"]


def test_a_gate_compares_with_the_one_in_service_and_with_its_own_limit():
    gate = gpuserve.Gate(metric="accuracy", better="higher", tolerance=0.05, limit=0.5)
    assert gate.refusal({"accuracy": 0.6}, None) is None
    assert gate.refusal({"accuracy": 0.6}, {"accuracy": 0.64}) is None
    assert "at least would hold against the 0.7 in service" in gate.refusal({"accuracy": 0.6}, {"accuracy": 0.7})
    assert "0.5 at least is declared" in gate.refusal({"accuracy": 0.4}, None)
    assert gate.refusal({"loss": 1.0}, None) == "accuracy is missing; the metrics that were told: loss"
    assert gate.refusal({"accuracy": float("nan")}, {"accuracy": 0.1}).startswith("accuracy is nan")
