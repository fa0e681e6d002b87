"""Trainings that learn, are killed and go on, publish, and are served only if they are no worse."""

import itertools
import signal

import pytest
from training_tiny import STEPS, digest_of, docstrings, seeded, write_rows

pytestmark = pytest.mark.wide

EVERY = 6


def adapter_of(root, run):
    return digest_of(root / "runs/tuned" / run / "adapter")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def unbroken(trainers, root):
    """A run from beginning to end, promoted as the first of its name."""
    gate = {"metric": "eval_loss", "better": "lower", "tolerance": 0.01}
    return trainers.train(root, "unbroken", declared={"evaluation": 0.2, "gate": gate})


def test_a_training_visibly_learns_and_tells_it_by_step(unbroken, root):
    losses = [one["loss"] for one in unbroken["history"] if "loss" in one]
    page = (root / "runs/tuned/unbroken/report.html").read_text()
    assert len(losses) == STEPS
    assert losses[-1] < 0.6 * losses[0]
    assert page.count("<circle") >= STEPS
    assert (unbroken["state"], unbroken["step"], unbroken["promoted"]) == ("finished", STEPS, True)


def test_python_s_own_docstrings_are_learnt_as_the_curve_over_rows_that_were_kept_back_shows(trainers, root):
    rows = write_rows(root / "docstrings.jsonl", docstrings())
    told = {"rows": rows, "declared": {"evaluation": 0.2, "batch_size": 16, "max_length": 128}}
    base = trainers.train(root, "base", **{**told, "declared": {**told["declared"], "steps": 1, "learning_rate": 1e-9}})
    learning = {"steps": 100, "evaluate_every": 25, "schedule": "cosine", "lora": {"rank": 32, "dropout": 0.0}}
    learnt = trainers.train(root, "docstrings", **{**told, "declared": {**told["declared"], **learning}})
    curve = [base["metrics"]["eval_loss"], *(one["eval_loss"] for one in learnt["history"] if "eval_loss" in one)]
    print(f"eval_loss {[round(one, 3) for one in curve]}")
    assert len(curve) == 5
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] < 0.88 * curve[0]
    accuracy = "eval_mean_token_accuracy"
    assert learnt["metrics"][accuracy] > 1.3 * base["metrics"][accuracy]
    page = (root / "runs/tuned/docstrings/report.html").read_text()
    assert page.count("<title>eval_loss ") == 4
    assert page.count("<title>loss ") == 100


def test_the_environment_stays_as_it_is_while_other_threads_may_read_it(trainers, root):
    names = root / "names"
    report = trainers.train(root, "environment", environment=names, declared={"steps": 3, "evaluation": 0.2})
    assert report["state"] == "finished"
    assert names.read_text().splitlines() == []


def test_a_run_that_is_over_is_told_of_and_not_run_again(unbroken, trainers, root):
    gate = {"metric": "eval_loss", "better": "lower", "tolerance": 0.01}
    assert trainers.train(root, "unbroken", declared={"evaluation": 0.2, "gate": gate}) == unbroken
    assert len(trainers.steps_of(root, "unbroken")) == 1


def test_killed_interrupted_and_timed_out_it_ends_with_the_same_bits(unbroken, trainers, root):
    dice = seeded()
    told = {"run": "broken", "root": root, "declared": {"evaluation": 0.2}}
    first = trainers.run(**told, after_events=dice.randint(2, 12), then_s=dice.random() / 50, signal=signal.SIGKILL)
    second = trainers.run(**told, after_events=dice.randint(2, 5), signal=signal.SIGINT)
    third = trainers.run(**told, timeout_s=120.01)  # less than its stop_before_s of 120 s leaves one step
    last = trainers.train(**told)
    assert (first["code"], second["code"]) == (-signal.SIGKILL, 130)
    assert third["report"]["state"] == "continued"
    assert adapter_of(root, "broken") == adapter_of(root, "unbroken")
    assert last["metrics"] == unbroken["metrics"]
    attempts = trainers.steps_of(root, "broken")
    assert len(attempts) == last["attempts"] == 4
    for before, after in itertools.pairwise(attempts):
        assert before[-1] - after[0] <= EVERY
    # interrupted and timed out, it had a checkpoint of its last step
    assert attempts[2][0] == attempts[1][-1]
    assert attempts[3][0] == attempts[2][-1] == attempts[2][0] + 1


def test_a_loss_that_is_no_number_ends_it_names_the_step_and_keeps_the_last_good_checkpoint(trainers, root):
    report = trainers.train(root, "poisoned", poison=9)
    assert (report["state"], report["step"], report["quantity"], report["kept"]) == ("diverged", 9, "loss", 6)
    kept = [path.name[:14] for path in (root / "runs/tuned/poisoned/checkpoints").iterdir()]
    assert kept == ["step-000000006"]
    assert "Lower learning_rate" in report["reason"]


def test_a_gradient_that_is_no_number_ends_it_although_the_loss_is_one(trainers, root):
    report = trainers.train(root, "steep", poison=9, poisoned="grad_norm")
    assert (report["state"], report["step"], report["quantity"], report["kept"]) == ("diverged", 9, "grad_norm", 6)
    assert all(abs(one["loss"]) < 100 for one in report["history"] if "loss" in one)
    assert [path.name[:14] for path in (root / "runs/tuned/steep/checkpoints").iterdir()] == ["step-000000006"]


def test_weights_that_are_no_numbers_are_not_saved_over_those_that_are(trainers, root):
    """After the last step before a checkpoint, whose loss and gradient were numbers."""
    report = trainers.train(root, "holed", poison=12, poisoned="weights")
    assert (report["state"], report["step"], report["kept"]) == ("diverged", 12, 6)
    assert report["quantity"].startswith("weights (base_model.")
    assert [path.name[:14] for path in (root / "runs/tuned/holed/checkpoints").iterdir()] == ["step-000000006"]


def test_other_rows_or_numbers_are_another_run(trainers, root, tmp_path):
    (root / "runs/tuned/poisoned/result.json").unlink()
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "another row"}])
    found = trainers.run(root=root, run="poisoned", rows=rows, declared={"learning_rate": 1e-3})
    assert found["error"] == "TrainingError"
    assert "begun with another dataset, learning_rate, rows; its checkpoints do not fit" in found["text"]


def test_a_worse_adapter_is_published_and_not_promoted_and_the_one_in_service_answers_otherwise_than_its_base(
    unbroken, trainers, root
):
    gate = {"metric": "eval_loss", "better": "lower"}
    worse = trainers.train(root, "worse", declared={"evaluation": 0.3, "gate": gate, "learning_rate": 1e-6, "steps": 2})
    assert (worse["state"], worse["promoted"], worse["served"]) == ("finished", False, unbroken["adapter"])
    assert worse["adapter"] != unbroken["adapter"]
    assert "at most would hold against the" in worse["reason"]
    # other rows than those that the one in service was promoted on: it was measured anew
    assert worse["served_metrics"]["eval_loss"] != unbroken["metrics"]["eval_loss"]
    answers = trainers.run(do="answers", root=root, text="shelve:")
    assert "error" not in answers, answers.get("text")
    assert answers["base"] != answers["tuned"]


def test_qlora_holds_the_base_in_four_bits_of_nf4_and_its_scales_too_and_computes_in_the_declared_precision(trainers):
    found = trainers.run(do="four_bits")
    for name, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        config = found["configs"][name]
        kind = (config["quant_method"], config["load_in_4bit"], config["bnb_4bit_quant_type"])
        assert kind == ("bitsandbytes", True, "nf4")
        assert (config["bnb_4bit_use_double_quant"], config["bnb_4bit_compute_dtype"]) == (True, dtype)


def test_qlora_where_no_gpu_is_says_what_to_write_and_trains_nothing(trainers, root):
    if trainers.run(do="four_bits")["has_gpu"]:
        pytest.skip("this machine has a GPU")
    found = trainers.run(root=root, run="four-bits", declared={"lora": {"four_bit": True}, "gpu": "L4"})
    assert found["error"] == "TrainingError"
    assert "lora.four_bit needs a GPU, and this container has none; write gpu = 'L4'" in found["text"]
    assert list((root / "runs/tuned/four-bits/checkpoints").iterdir()) == []
