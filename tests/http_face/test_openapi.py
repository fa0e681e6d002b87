"""The whole OpenAPI of a served server, attacked by schemathesis: no 5xx, nothing that the schema does not say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpuserve import Http

from .conftest import KEY, serving
from .served import Echo

pytestmark = pytest.mark.wide

pytest.importorskip("gpuserve.runtime.http.serve")


@pytest.fixture(scope="module")
def served():
    with serving(Echo, Http(cors_origins=("https://page.example",))) as running:
        yield running


def attack(served, cases: int, seed: int, *more: str) -> str:
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis", "run", f"{served.url}/openapi.json", "--url", served.url,
            "-H", f"Authorization: Bearer {KEY}", "--checks", "all",
            # 2.0 is an integer to JSON Schema, and to us it is not
            "--exclude-checks", "positive_data_acceptance",
            "--max-examples", str(cases), "--seed", str(seed),
            "--max-response-time", "5", "--generation-database", "none", *more,
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_every_route_and_every_error_is_described(served):
    page = json.loads(served.ask("/openapi.json").body)

    assert set(page["paths"]) == {"/health", "/ready", "/metrics", "/predict", "/letters", "/own", "/own/{number}"}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in {"/health", "/ready"})
            for status in ("400", "401", "429", "500", "504"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}
            assert ("422" in operation["responses"]) == (path in {"/predict", "/letters", "/own", "/own/{number}"})
    assert "HTTPValidationError" not in json.dumps(page)
    references = {part.split('"')[0] for part in json.dumps(page).split('"#/components/schemas/')[1:]}
    assert references <= set(page["components"]["schemas"])


def test_nothing_that_the_schema_says_or_forbids_gets_a_5xx_or_another_answer_than_it_says(served):
    attack(served, 10, 1, "--phases", "examples,coverage,fuzzing")


@pytest.mark.heavy
@pytest.mark.timeout(3000)
def test_a_hundred_thousand_requests_get_no_5xx():
    # in several runs: one keeps all that it has made, and collecting that garbage holds its own clients up for seconds
    generated, seed = 0, 7
    with serving(Echo, Http()) as served:
        while generated < 100_000:
            said = attack(served, 4_000, seed, "--phases", "examples,coverage,fuzzing,stateful", "--workers", "2")
            found = re.search(r"(\d+) generated", said)
            assert found is not None, said
            print(f"seed {seed}: {found.group()}")
            generated, seed = generated + int(found[1]), seed + 1
