"""What can be mapped over: functions and servers, in hand or by the name that they were deployed under."""

import importlib.util
import json
from pathlib import Path

import modal
import pytest

import gpuserve
from gpuserve.engine import LocalEngine

pytestmark = pytest.mark.wide

spec = importlib.util.spec_from_file_location("served", Path(__file__).with_name("served.py"))
served = importlib.util.module_from_spec(spec)  # tests are no package
spec.loader.exec_module(served)

TEXTS = ["a", "bcd", ""]


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory):
    with LocalEngine(tmp_path_factory.mktemp("s") / "home") as running, running.connected():
        served.app.deploy()
        yield running


@pytest.mark.parametrize(
    ("target", "method", "wanted"),
    [
        (served.sizes, None, [1, 3, 0]),
        (modal.Function.from_name("served", "sizes"), None, [1, 3, 0]),
        ("served/sizes", None, [1, 3, 0]),
        (served.One, None, [101, 103, 100]),
        (served.One, "size", [101, 103, 100]),
        (served.Two, "negative", [-1, -3, 0]),
        ("served/One.size", None, [101, 103, 100]),
        ("served/Two.negative", None, [-1, -3, 0]),
        ("served/Two", "size", [201, 203, 200]),
    ],
    ids=str,
)
def test_every_kind_of_target_answers_each_item_of_its_own(target, method, wanted, tmp_path):
    report = gpuserve.BatchMapper(target=target, method=method, source=TEXTS, output=tmp_path / "out").run()

    assert (report.status, report.done, report.failed) == ("finished", 3, 0)
    rows = [json.loads(line) for line in (tmp_path / "out" / "part-000000.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == wanted


def test_a_handle_of_a_server_and_a_method_of_one_are_targets_too(tmp_path):
    handle = served.Two()
    shared = {"source": TEXTS, "retries": gpuserve.MapRetries(max_attempts=1)}
    gpuserve.BatchMapper(target=handle, method="negative", output=tmp_path / "handle", **shared).run()
    gpuserve.BatchMapper(target=handle.negative, output=tmp_path / "method", **shared).run()

    rows = [(tmp_path / name / "part-000000.jsonl").read_text() for name in ("handle", "method")]
    assert rows[0] == rows[1]
    assert [json.loads(line)["output"] for line in rows[0].splitlines()] == [-1, -3, 0]


def test_a_server_of_two_methods_asks_which(tmp_path):
    with pytest.raises(gpuserve.DeclarationError, match="method got None; Two has the batched methods negative, size"):
        gpuserve.BatchMapper(target=served.Two, source=TEXTS, output=tmp_path / "out").run()


@pytest.mark.parametrize("name", ["served", "served/", "/sizes"])
def test_a_name_that_is_none_is_refused_with_the_way_to_write_one(name, tmp_path):
    with pytest.raises(gpuserve.DeclarationError, match=r"write 'app/function' or 'app/Class.method'"):
        gpuserve.BatchMapper(target=name, source=TEXTS, output=tmp_path / "out").run()
