"""Starts: the order of the hooks, what a start was made of, what that advises, and what an app can cost."""

import asyncio
import json

import pytest

import gpuserve
from gpuserve.runtime.server import ServerRuntime
from gpuserve.runtime.start import StartLimits, StartReport
from gpuserve.specs.batching import Batching

APP = """
import modal, gpuserve

app = modal.App("starts")

class Base(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()

    def load(self): self.steps = ["load"]
    def to_device(self): self.steps.append("to_device")
    def warm_up(self): self.steps.append("warm_up")
    def unload(self): print("steps", [*self.steps, "unload"])

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[list[str]]:
        return [list(self.steps) for _ in batch]

@gpuserve.register(app)
class Snapped(Base):
    memory_snapshot = True
    gpu = "L4"

    @modal.enter(snap=True)
    def before(self): self.begun = True

    @modal.method()
    def has_begun(self): return self.begun

    modal = {"experimental_options": {"enable_gpu_snapshot": True}}

@gpuserve.register(app)
class Plain(Base):
    scaling = gpuserve.Scaling(max_containers=3)

@app.local_entrypoint()
def main():
    print("plain", Plain().predict.remote(1))
    snapped = Snapped()
    print("snapped", snapped.predict.remote(1), snapped.has_begun.remote())
"""


def test_hooks_run_in_modals_order_and_a_run_ends_with_what_the_app_can_cost(modal_cli, tmp_path):
    (tmp_path / "starts.py").write_text(APP)
    done = modal_cli("run", "starts.py")
    lines = done.stdout.splitlines()
    assert "plain ['load', 'to_device', 'warm_up']" in lines
    assert "snapped ['load', 'to_device', 'warm_up'] True" in lines
    assert lines.count("steps ['load', 'to_device', 'warm_up', 'unload']") == 2
    ready = {event["server"]: event for event in map(json.loads, [line for line in lines if '"ready"' in line])}
    plain = ready["Plain"]
    parts = ("import_s", "load_s", "to_device_s", "warm_up_s")
    assert plain["total_s"] == pytest.approx(sum(plain[part] for part in parts), abs=0.01)
    assert plain["import_s"] > plain["load_s"]
    assert (plain["advised_startup_timeout_s"], plain["advised_scaledown_window_s"]) == (10, 60)
    # a process that came out of a snapshot is older than its start
    assert set(ready["Snapped"]) == set(plain) - {"import_s"}
    said = " ".join((done.stdout + done.stderr).split())
    assert "'Snapped' declares a memory snapshot, and the local engine takes none" in said
    assert "'Plain' declares" not in said
    assert done.stderr.splitlines()[-1].startswith("starts can cost up to $")
    assert "(Snapped $0.81, Plain $0.0" in done.stderr.splitlines()[-1]


def test_what_is_imported_and_never_run_costs_nothing_to_tell(modal_cli, tmp_path):
    (tmp_path / "starts.py").write_text(APP.partition("@app.local_entrypoint")[0] + "\nprint('imported')\n")
    done = modal_cli("run", "starts.py::nothing", check=False)
    assert "imported" in done.stdout
    assert "can cost" not in done.stdout + done.stderr


def test_the_snapshot_flags_reach_the_control_plane(sent, modal_cli, tmp_path):
    (tmp_path / "starts.py").write_text(APP.replace('"starts"', '"kept"'))
    modal_cli("deploy", "starts.py")
    snapped, plain = sent("kept", "Snapped.*"), sent("kept", "Plain.*")
    assert snapped.checkpointing_enabled
    assert snapped.experimental_options["enable_gpu_snapshot"] == "True"
    assert not plain.checkpointing_enabled


class Heard:
    """Where the events of a server go."""

    batch_observers = observers = ()

    def __init__(self, events):
        self.event = events.append


class Idle:
    def load(self):
        pass

    to_device = warm_up = load


def test_a_start_that_comes_near_its_limits_warns_in_the_log(monkeypatch):
    monkeypatch.setenv("MODAL_IS_REMOTE", "1")  # where the age of the process is the start's
    events = []
    runtime = ServerRuntime(
        Idle(), name="Idle", methods={}, inputs={}, batching=Batching(), outlet=Heard(events),
        limits=StartLimits(startup_timeout_s=1, scaledown_window_s=0),
    )  # fmt: skip

    async def start():
        await runtime.load()
        await runtime.make_ready()

    asyncio.run(start())
    assert [event["event"] for event in events] == ["ready", "warning", "warning"]
    assert "startup_timeout_s=1 leaves little room" in events[1]["message"]
    assert "scaledown_window=0 is shorter than this start" in events[2]["message"]


def test_a_start_with_room_on_all_sides_warns_of_nothing():
    report = StartReport({"import": 3.0, "load": 90.0, "to_device": 5.0, "warm_up": 2.0}, verify_s=120.0, waited_s=20.0)
    assert report.total_s == 120
    assert (report.advised_startup_timeout_s, report.advised_scaledown_window_s) == (180, 180)
    assert report.warnings(StartLimits(180, 120)) == []
    assert [text.split(" ")[0] for text in report.warnings(StartLimits(179, 119))] == [
        "startup_timeout_s=179",
        "scaledown_window=119",
    ]
    assert gpuserve.Scaling(scaledown_window=report.advised_scaledown_window_s)
