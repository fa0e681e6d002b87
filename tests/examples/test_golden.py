"""The examples that need a GPU, a registry or a Dockerfile's build: what their deployment sends is what was reviewed.

``GPUSERVE_WRITE_GOLDEN=1 pytest -m "heavy or not heavy" tests/examples/test_golden.py`` writes the files anew; each
line of the diff is then read against what the example is for.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

import pytest
from examples_sent import Recorder

from gpuserve.engine import LocalEngine

pytestmark = pytest.mark.wide

GOLDEN = Path(__file__).parent / "golden"
KEY = "GPUSERVE_API_KEYS=me:0123456789abcdef0123"
SECRETS = {
    "huggingface-token": ["HF_TOKEN=hf_x"],
    "api-secrets": [KEY],
    "embedding-keys": [KEY],
    "wandb-credentials": ["WANDB_API_KEY=x", "WANDB_PROJECT=y"],
    "aws-role": ["ROLE_ARN=x", "AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY=x"],
}
APPS = {
    "images": "images",
    "gpu_function": "gpu-inference",
    "llm_class": "llama-inference",
    "weights_volume": "weights-in-a-volume",
    "embedding_endpoint": "embedding-service",
    "inference_api": "ml-inference-api",
    "secrets": "secrets",
    "fine_tune": "fine-tuning",
}


@pytest.fixture(scope="module")
def recorder():
    with pytest.MonkeyPatch.context() as patch:
        yield Recorder(patch)


@pytest.fixture(scope="module")
def engine(recorder):
    with LocalEngine(image_check="warn") as running:
        yield running


@pytest.fixture(scope="module")
def secrets(engine):
    import modal

    with engine.connected():
        for name, pairs in SECRETS.items():
            modal.Secret.objects.create(name, dict(pair.split("=", 1) for pair in pairs))


def compare(folder, engine, example, recorder):
    example(folder, "deploy", "app.py")
    text = json.dumps(recorder.sent_of(engine, APPS[folder]), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    golden = GOLDEN / f"{folder}.json"
    if "GPUSERVE_WRITE_GOLDEN" in os.environ:
        golden.write_text(text)
    known = golden.read_text().splitlines()
    assert "\n".join(difflib.unified_diff(known, text.splitlines(), "reviewed", "sent", lineterm="", n=6)) == ""


def test_the_images_that_are_sent_are_those_that_were_reviewed(engine, secrets, example, recorder):
    compare("images", engine, example, recorder)


@pytest.mark.heavy
@pytest.mark.parametrize("folder", [one for one in APPS if one != "images"])
def test_what_is_sent_is_what_was_reviewed(folder, engine, secrets, example, recorder):
    compare(folder, engine, example, recorder)
