"""What of a declaration reaches the control plane, field by field; parameters, options for a call, reserved names."""

from pathlib import Path

import modal
import pytest

import gpuserve
from gpuserve.engine import LocalEngine
from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.services.images import ImageService
from gpuserve.specs.server import ServerDeclaration

APP = """
import modal, gpuserve

app = modal.App("fields")
IMAGE = gpuserve.ImageSpec.debian()

class Base(gpuserve.WarmModelServer):
    image = IMAGE

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch

@gpuserve.register(app)
class Plain(Base): pass

@gpuserve.register(app)
class Changed(Base):
    gpu = ("H100:2", "A100-80GB")
    scaling = gpuserve.Scaling(min_containers=1, max_containers=7, buffer_containers=2, scaledown_window=99)
    batching = gpuserve.Batching(max_batch_size=4, max_queue=20)
    secrets = (gpuserve.SecretSpec(name="fields"),)
    timeout_s = 77
    startup_timeout_s = 88
    memory_snapshot = True
    retries = 3
    cpu = 2.5
    memory_mib = 2048
    ephemeral_disk_mib = 600_000
    volumes = {"/data": modal.Volume.from_name("fields", create_if_missing=True)}
    cloud = "aws"
    region = ("us-east", "eu-west")
    routing_region = "us-east"
    modal = {"block_network": True, "single_use_containers": False}

# A class of its own: nonpreemptible is for CPU alone, and variables reach Modal as one more secret.
@gpuserve.register(app)
class Steady(Base):
    nonpreemptible = True
    env = {"COLOUR": "blue"}
"""


def _gpu(definition):
    return definition.resources.gpu_config.gpu_type, definition.resources.gpu_config.count


# By field: the class above that changes it, where Modal is told of it, and what it is told of Plain and of that class.
SENT = {
    "gpu": ("Changed", _gpu, ("", 0), ("H100", 2)),
    "scaling.min_containers": ("Changed", lambda one: one.autoscaler_settings.min_containers, 0, 1),
    "scaling.max_containers": ("Changed", lambda one: one.autoscaler_settings.max_containers, 1, 7),
    "scaling.buffer_containers": ("Changed", lambda one: one.autoscaler_settings.buffer_containers, 0, 2),
    "scaling.scaledown_window": ("Changed", lambda one: one.autoscaler_settings.scaledown_window, 60, 99),
    # all that wait, a batch under way and the health checks: no more than Modal's most
    "batching.max_queue": ("Changed", lambda one: one.max_concurrent_inputs, 1000, 32),
    "batching.max_batch_size": ("Changed", lambda one: one.target_concurrent_inputs, 64, 8),
    "secrets": ("Changed", lambda one: len(one.secret_ids), 0, 1),
    "env": ("Steady", lambda one: len(one.secret_ids), 0, 1),
    "timeout_s": ("Changed", lambda one: one.timeout_secs, 300, 77),
    "startup_timeout_s": ("Changed", lambda one: one.startup_timeout_secs, 600, 88),
    "memory_snapshot": ("Changed", lambda one: one.checkpointing_enabled, False, True),
    "retries": ("Changed", lambda one: one.retry_policy.retries, 0, 3),
    "cpu": ("Changed", lambda one: one.resources.milli_cpu, 0, 2500),
    "memory_mib": ("Changed", lambda one: one.resources.memory_mb, 0, 2048),
    "ephemeral_disk_mib": ("Changed", lambda one: one.resources.ephemeral_disk_mb, 0, 600_000),
    "volumes": ("Changed", lambda one: [mount.mount_path for mount in one.volume_mounts], [], ["/data"]),
    "cloud": ("Changed", lambda one: one.cloud_provider_str, "", "aws"),
    "region": ("Changed", lambda one: list(one.scheduler_placement.regions), [], ["us-east", "eu-west"]),
    "routing_region": ("Changed", lambda one: one.routing_region, "", "us-east"),
    "nonpreemptible": ("Steady", lambda one: one.scheduler_placement.nonpreemptible, False, True),
    "modal": ("Changed", lambda one: one.block_network, False, True),
}
# What is not one number or word of the function that Modal is sent, and the tests that show what becomes of it.
SHOWN_ELSEWHERE = {
    "image": "builders/test_images.py",
    "weights": "builders/test_weights_of_servers.py",
    "adapters": "builders/test_adapters.py",
    "max_loaded_adapters": "builders/test_adapters.py",
    "mixed_adapters": "builders/test_adapters.py",
    "http": "builders/test_http_server.py",
    "telemetry": "http_face/test_telemetry.py",
    "batching.max_batch_cost": "unit/test_batcher.py",
    "batching.padded": "unit/test_batcher.py",
    "batching.wait_ms": "unit/test_batcher_machine.py",
    "proxy": "builders/test_options.py",
    "max_parameter_sets": "builders/test_options.py",
    "budget": "builders/test_options.py",
    "variants": "builders/test_variants.py",
}


def test_no_field_of_a_declaration_is_forgotten_here():
    """The fields are those of the code: a new one fails this until it is sent below, or shown somewhere else."""
    attributes = {name for name in gpuserve.WarmModelServer.__annotations__ if not name.startswith("_gpuserve")}
    assert attributes == {*ServerDeclaration.model_fields, "variants"}
    parts = {"scaling": gpuserve.Scaling, "batching": gpuserve.Batching}
    fields = {f"{part}.{name}" for part, spec in parts.items() for name in spec.model_fields}

    assert {*SENT, *SHOWN_ELSEWHERE} == (attributes - set(parts)) | fields
    assert not set(SENT) & set(SHOWN_ELSEWHERE)
    assert [field for field, (_name, _read, before, after) in SENT.items() if before == after] == []
    for field, file in SHOWN_ELSEWHERE.items():
        assert field.rpartition(".")[2] in (Path(__file__).parents[1] / file).read_text(), (field, file)


def test_every_field_of_a_declaration_reaches_the_control_plane(engine, modal_cli, tmp_path, sent):
    modal_cli("secret", "create", "fields", "KEY=value")
    (tmp_path / "fields.py").write_text(APP)
    modal_cli("deploy", "fields.py")
    found = {name: sent("fields", f"{name}.*") for name in ("Plain", "Changed", "Steady")}

    got = {field: (read(found["Plain"]), read(found[name])) for field, (name, read, _before, _after) in SENT.items()}
    assert got == {field: (before, after) for field, (_name, _read, before, after) in SENT.items()}
    assert _gpu(sent("fields", "Changed.*", rank=1)) == ("A100-80GB", 1)


BEHIND = """
import modal, gpuserve

app = modal.App("behind")

@gpuserve.register(app)
class Behind(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    proxy = modal.Proxy.from_name("egress")

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch
"""


def test_the_proxy_of_a_declaration_is_looked_up_by_its_name_and_its_id_is_sent(monkeypatch, tmp_path, modal_forks):
    """The engine has no proxies, so this one is taught the answer of Modal to the one question that the client asks."""
    asked = []

    def answer(_service, request, _caller):
        asked.append(request.name)
        return api_pb2.ProxyGetResponse(proxy=api_pb2.Proxy(proxy_id="pr-egress", name=request.name))

    monkeypatch.setattr(ImageService, "ProxyGet", answer, raising=False)
    (tmp_path / "behind.py").write_text(BEHIND)
    with LocalEngine() as knowing:
        done = modal_forks("deploy", "behind.py", environment=knowing.environment, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {one.definition.proxy_id for one in knowing.core.registry.functions.values()} == {"pr-egress"}
    assert set(asked) == {"egress"}


def test_the_engine_says_that_it_has_no_proxies(modal_cli, tmp_path):
    (tmp_path / "behind.py").write_text(BEHIND)
    done = modal_cli("deploy", "behind.py", check=False)
    assert done.returncode != 0
    assert "does not implement ProxyGet; what works instead" in " ".join((done.stdout + done.stderr).split())


POOLS = """
import os
import modal, gpuserve

app = modal.App("pools")

@gpuserve.register(app)
class Shop(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    max_parameter_sets = 2
    sign: str = modal.parameter(default="open")

    def load(self): self.tint = os.environ.get("TINT", "none")

    @gpuserve.batched
    def price(self, batch: list[int]) -> list[str]:
        return [f"{number} {self.sign} {self.tint}" for number in batch]

    @gpuserve.streaming
    def count(self, item: int):
        yield from range(item)

    @modal.method()
    def pid(self): return os.environ["MODAL_TASK_ID"]

@app.local_entrypoint()
def main():
    red = Shop.with_options(env={"TINT": "red"})
    shops = [Shop(), Shop(sign="shut"), red(), red.with_options(timeout=100)(sign="shut")]
    print([shop.price.remote(1) for shop in shops])
    print(list(red().price.map([1, 2, 3], chunk=2)), list(red().count.remote_gen(2)))
    print("pools", len({shop.pid.remote() for shop in shops}))
"""


def test_parameters_and_options_for_a_call_are_pools_of_their_own_with_the_same_face(modal_cli, tmp_path):
    (tmp_path / "pools.py").write_text(POOLS)
    said = modal_cli("run", "pools.py").stdout.splitlines()
    assert "['1 open none', '1 shut none', '1 open red', '1 shut red']" in said
    assert "['1 open red', '2 open red', '3 open red'] [0, 1]" in said
    assert "pools 4" in said


BESIDE = """
import modal, gpuserve

app = modal.App("beside")

@gpuserve.register(app)
class Mixed(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="beside-keys"))

    def load(self): self.loads = getattr(self, "loads", 0) + 1

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return [number + self.loads for number in batch]

    @modal.method()
    async def twice(self, number: int):
        return 2 * await self.predict.submit(number)

    def routes(self, router):
        @router.get("/ours")
        async def ours(): return {"loads": self.loads}

    @modal.asgi_app()
    def admin(self):
        from fastapi import FastAPI
        own = FastAPI()
        @own.get("/own")
        async def answer(): return {"loads": self.loads, "predicted": await self.predict.submit(1)}
        return own
"""


def test_own_methods_routes_and_apps_live_in_the_same_container_beside_ours(engine, modal_cli, tmp_path):
    import httpx

    key = "0123456789abcdef0123456789"
    modal_cli("secret", "create", "beside-keys", f"GPUSERVE_API_KEYS=ci:{key}")
    (tmp_path / "beside.py").write_text(BESIDE)
    modal_cli("deploy", "beside.py")
    with engine.connected():
        mixed = modal.Cls.from_name("beside", "Mixed")()
        ours, own = mixed.web.get_web_url(), mixed.admin.get_web_url()
        assert mixed.twice.remote(20) == 42
    assert httpx.get(f"{own}/own", timeout=20).json() == {"loads": 1, "predicted": 2}  # its own face, its own guard
    assert httpx.get(f"{ours}/ours", timeout=20).status_code == 401
    answer = httpx.get(f"{ours}/ours", headers={"Authorization": f"Bearer {key}"}, timeout=20)
    assert answer.json() == {"loads": 1}


def register(**declared):
    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch

    body = {"image": gpuserve.ImageSpec.debian(), "predict": predict, **declared}
    return gpuserve.register(modal.App("unsent"))(type("Served", (gpuserve.WarmModelServer,), body))


def test_a_class_with_parameters_says_how_many_sets_are_in_use():
    with pytest.raises(gpuserve.DeclarationError, match="max_parameter_sets = how many"):
        register(sign=modal.parameter(default="open"), __annotations__={"sign": str})


@pytest.mark.parametrize("option", [{"image": None}, {"min_containers": 1}, {"gpu": ["H100", "L4"]}])
def test_what_modal_cannot_change_for_a_call_is_refused_with_a_way_out(option):
    with pytest.raises(gpuserve.RegistrationError, match="cannot be changed for a call; register a subclass"):
        register().with_options(**option)


def test_options_for_a_call_keep_the_budget_together_with_the_class_itself():
    served = register(gpu="L4", budget=gpuserve.Budget(max_usd_per_hour=3))
    assert served.with_options(gpu="L4", max_containers=2)
    with pytest.raises(gpuserve.DeclarationError, match=r"budget allows \$3\.00 an hour and this is up to \$4"):
        served.with_options(gpu="H100")


def test_options_upon_options_keep_the_budget_with_all_that_was_chosen_before():
    served = register(gpu="L4", budget=gpuserve.Budget(max_usd_per_hour=6))
    on_h100 = served.with_options(gpu="H100")
    with pytest.raises(gpuserve.DeclarationError, match=r"budget allows \$6\.00 an hour and this is up to \$16"):
        on_h100.with_options(max_containers=4)


@pytest.mark.parametrize("name", ["local", "web", "url", "submit_many", "_gpuserve_hidden", "with_options"])
def test_names_that_are_ours_are_refused(name):
    with pytest.raises(gpuserve.DeclarationError, match=f"{name} is a name of gpuserve's own"):
        type("Served", (gpuserve.WarmModelServer,), {name: lambda self: None})
