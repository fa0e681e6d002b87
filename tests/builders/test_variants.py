"""Variants: what is chosen when an app is deployed is what its containers see, field by field."""

from __future__ import annotations

import os
import subprocess
import sys

import modal
import pytest

import gpuserve
from gpuserve import DeclarationError, Http, ImageSpec, Scaling, SecretSpec, Variant

APP = """
import os
import modal, gpuserve
from gpuserve import Http, Scaling, SecretSpec, Variant

app = modal.App("variants")
KEYS = ("GPUSERVE_API_KEYS",)


@gpuserve.register(app, env={"KEPT": "yes"})
class Server(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    gpu = "H100"
    scaling = Scaling(max_containers=3, scaledown_window=60)
    secrets = (SecretSpec(name="production", required_keys=("WHERE",)),)
    http = Http(keys=SecretSpec(name="keys", required_keys=KEYS), max_body_bytes=1000)
    variants = {
        "staging": Variant(
            gpu="T4",
            scaling=Scaling(max_containers=1, scaledown_window=5),
            secrets=(SecretSpec(name="staging", required_keys=("WHERE",)),),
            http=Http(keys=SecretSpec(name="staging-keys", required_keys=KEYS), max_body_bytes=10),
            domain="staging.example.com",
        ),
        "cpu": Variant(gpu=None),
    }

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[dict]:
        return [self.seen() for _ in batch]

    def seen(self) -> dict:
        cls = type(self)
        return {
            "variant": os.environ["GPUSERVE_VARIANT"], "kept": os.environ["KEPT"], "where": os.environ["WHERE"],
            "key": os.environ["GPUSERVE_API_KEYS"], "gpu": cls.gpu, "max_containers": cls.scaling.max_containers,
            "max_body_bytes": cls.http.max_body_bytes,
        }

"""


SECRETS = {
    "production": {"WHERE": "there"},
    "staging": {"WHERE": "here"},
    "keys": {"GPUSERVE_API_KEYS": "me:0123456789abcdef"},
    "staging-keys": {"GPUSERVE_API_KEYS": "me:fedcba9876543210"},
}


@pytest.fixture
def deployed(engine, tmp_path):
    """Deploy the app in a variant: what its container sees, and what was sent of its class."""
    (tmp_path / "app.py").write_text(APP)

    def run(variant):
        with engine.connected():
            for name, values in SECRETS.items():
                modal.Secret.objects.create(name, values, allow_existing=True)
            environment = {name: value for name, value in os.environ.items() if name != "GPUSERVE_VARIANT"}
            environment |= {"GPUSERVE_VARIANT": variant} if variant is not None else {}
            deploy = [sys.executable, "-m", "modal", "deploy", "app.py"]
            done = subprocess.run(
                deploy, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
            )
            if done.returncode != 0:
                return " ".join((done.stdout + done.stderr).split()), None
            seen = modal.Cls.from_name("variants", "Server")().predict.remote(1)
        functions = [one for one in engine.core.registry.functions.values() if not one.base_id]
        return seen, functions[-1].definition

    return run


def test_a_container_sees_every_field_of_the_variant_that_was_chosen(deployed):
    seen, sent = deployed("staging")
    assert seen == {
        "variant": "staging", "kept": "yes", "where": "here", "key": "me:fedcba9876543210", "gpu": "T4",
        "max_containers": 1, "max_body_bytes": 10,
    }  # fmt: skip
    assert sent.resources.gpu_config.gpu_type == "T4"
    assert (sent.autoscaler_settings.max_containers, sent.autoscaler_settings.scaledown_window) == (1, 5)
    domains = [one.name for one in sent.method_definitions["web"].webhook_config.custom_domains]
    assert domains == ["staging.example.com"]


@pytest.mark.heavy
def test_what_a_variant_leaves_out_is_as_the_class_has_it_and_none_is_the_class_itself(deployed):
    as_it_is = {
        "variant": "", "kept": "yes", "where": "there", "key": "me:0123456789abcdef", "gpu": "H100",
        "max_containers": 3, "max_body_bytes": 1000,
    }  # fmt: skip
    seen, sent = deployed(None)
    assert seen == as_it_is
    assert sent.resources.gpu_config.gpu_type == "H100"
    assert not sent.method_definitions["web"].webhook_config.custom_domains

    seen, sent = deployed("cpu")
    assert seen == {**as_it_is, "variant": "cpu", "gpu": None}
    assert sent.resources.gpu_config.gpu_type == ""


@pytest.mark.heavy
def test_a_variant_that_the_class_has_not_is_refused_with_those_that_it_has(deployed):
    said, _ = deployed("stagin")
    assert "GPUSERVE_VARIANT='stagin' is no variant of it; choose one of staging, cpu" in said


def test_what_is_wrong_in_any_variant_is_told_when_the_class_is_defined():
    with pytest.raises(DeclarationError) as refused:

        class Wrong(gpuserve.WarmModelServer):
            image = ImageSpec.debian("3.11")
            routing_region = "us-east"
            variants = {  # noqa: RUF012
                "development": Variant(gpu="H999"),
                "staging": Variant(domain="staging.example.com"),
                "production": Variant(secrets=("token",)),
                "port": Variant(http=Http(transport="server"), domain="staging.example.com"),
                "fine": Variant(scaling=Scaling(max_containers=2), secrets=(SecretSpec(name="x"),)),
            }

    found = refused.value.faults
    assert len(found) == 4
    assert found[0].startswith("variants['development']: gpu got 'H999'")
    assert "write http=gpuserve.Http" in found[1]
    assert found[2].startswith("variants['production']: secrets")
    assert "app.server does not take" in found[3]

    with pytest.raises(DeclarationError, match=r"variants\['a'\] got 'T4'; write 'a'"):
        type("Other", (gpuserve.WarmModelServer,), {"variants": {"a": "T4"}})
    with pytest.raises(DeclarationError, match="domain got 'no domain'"):
        Variant(domain="no domain", http=Http())
