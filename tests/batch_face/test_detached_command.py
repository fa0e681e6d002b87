"""`gpuserve batch … --detach`: a driver in Modal, begun, followed and mended from a shell."""

import json
import sys

import modal
import pytest
from click.testing import CliRunner

import gpuserve
from gpuserve.builders.detached import DetachedRun
from gpuserve.cli.main import cli

APP = """
import modal
import gpuserve

app = modal.App("doubling")
mended = modal.Dict.from_name("mended", create_if_missing=True)
image = gpuserve.modal_image(gpuserve.ImageSpec.debian())

@app.function(image=image)
def double(batch):
    if 13 in batch and not mended.get("yes"):
        raise ConnectionError("thirteen")
    return [2 * number for number in batch]

@gpuserve.register_mapper(app)
class Double(gpuserve.BatchMapper):
    target = double
    source = gpuserve.Items(range(40), name="numbers")
    output = gpuserve.Shards("runs/declared", volume="doubled")
    batching = gpuserve.MapBatching(window=20, max_items=10)
    retries = gpuserve.MapRetries(max_attempts=1, initial_delay_s=0)

@gpuserve.register_mapper(app)
class Lost(gpuserve.BatchMapper):
    target = modal.Function.from_name("doubling", "nothing")
    source = gpuserve.Items(range(40), name="numbers")
    output = gpuserve.Shards("runs/lost", volume="doubled")

class Plain(gpuserve.BatchMapper):
    target = double
    source = gpuserve.Items(range(40), name="numbers")
    output = "out"
"""


@pytest.fixture
def folder(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "doubling_in_modal.py").write_text(APP)
    with engine.connected():
        yield tmp_path
    sys.modules.pop("doubling_in_modal", None)


def batch(*arguments):
    return CliRunner().invoke(cli, ["batch", *arguments])


def ended(command):
    """Where a detached run writes, and its report once it has ended."""
    assert command.exit_code == 0, command.output
    begun = json.loads(command.stdout)
    assert begun["volume"] == "doubled"
    return begun["output"], modal.FunctionCall.from_id(begun["call_id"]).get(timeout=100)


def test_a_detached_run_is_begun_followed_and_mended_from_a_shell(folder, modal_cli):
    arguments = ("doubling_in_modal.py::Double", "--output", "runs/other", "--detach")
    refused = batch("run", *arguments)
    assert refused.exit_code == 1
    assert "the driver doubling/Double is not deployed" in refused.output + str(refused.exception)
    modal_cli("deploy", "doubling_in_modal.py")

    output, report = ended(batch("run", *arguments, "--json"))

    assert (output, report.status, report.done, report.failed) == ("runs/other", "finished", 39, 1)
    told = batch("status", "runs/other", "--volume", "doubled").stdout
    assert "runs/other in volume doubled is finished" in told
    assert "39 of 40 items are committed in 2 files, 1 given up" in told

    modal.Dict.from_name("mended")["yes"] = True
    output, report = ended(batch("retry-failed", *arguments, "--json"))

    assert (output, report.status, report.done, report.failed) == ("runs/other/retried-000", "finished", 1, 0)
    row = b"".join(modal.Volume.from_name("doubled").read_file(f"{output}/part-000000.jsonl"))
    assert json.loads(row) == {"id": 13, "output": 26}


def test_a_detached_run_that_cannot_be_done_is_not_tried_again_and_says_why(folder, modal_cli):
    modal_cli("deploy", "doubling_in_modal.py")
    begun = json.loads(batch("run", "doubling_in_modal.py::Lost", "--detach", "--json").stdout)
    run = DetachedRun(begun["call_id"], gpuserve.Shards(begun["output"], volume=begun["volume"]))

    with pytest.raises(gpuserve.BatchRunError, match=r"'nothing'.* cannot be called: .*deploy its app"):
        run.wait(60)

    log = b"".join(modal.Volume.from_name("doubled").read_file("runs/lost/ledger/log"))
    assert log.count(b'"begin"') == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "doubling_in_modal.py::Plain", "--detach"), "write @gpuserve.register_mapper(app) above the class"),
        (("run", "doubling_in_modal.py::Double", "--detach", "--report", "page.html"), "leave them out with --detach"),
        (("run", "doubling_in_modal.py::Double"), "detach=True, or --detach"),
        (("retry-failed", "doubling_in_modal.py::Double"), "detach=True, or --detach"),
        (("retry-failed", "doubling_in_modal.py::Double", "--detach"), "runs/declared in volume doubled holds no run"),
        (("run", "doubling_in_modal.py::Double", "--detach", "--local"), "start one first: gpuserve local up"),
        (("status", "runs/nothing", "--volume", "doubled"), "runs/nothing in volume doubled holds no run"),
    ],
)
def test_what_cannot_be_detached_is_told_with_the_way_out(folder, monkeypatch, arguments, told):
    monkeypatch.setenv("GPUSERVE_HOME", str(folder / "no-engine"))
    done = batch(*arguments)
    assert done.exit_code != 0
    assert told in " ".join((done.output + str(done.exception)).split())
