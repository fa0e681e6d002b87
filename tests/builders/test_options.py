"""What of a declaration reaches the control plane, field by field; parameters, options for a call, reserved names."""

import modal
import pytest

import gpuserve

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
    env = {"COLOUR": "blue"}
    volumes = {"/data": modal.Volume.from_name("fields", create_if_missing=True)}
    cloud = "aws"
    region = ("us-east", "eu-west")
    routing_region = "us-east"
    modal = {"block_network": True, "single_use_containers": False}

@gpuserve.register(app)
class Steady(Base):
    nonpreemptible = True
"""

SAME = {"function_name", "method_definitions", "object_dependencies", "class_serialized", "function_serialized"}


def test_every_field_of_a_declaration_reaches_the_control_plane(engine, modal_cli, tmp_path, sent):
    modal_cli("secret", "create", "fields", "KEY=value")
    (tmp_path / "fields.py").write_text(APP)
    modal_cli("deploy", "fields.py")
    plain, changed, second, steady = (
        sent("fields", "Plain.*"), sent("fields", "Changed.*"), sent("fields", "Changed.*", rank=1),
        sent("fields", "Steady.*"),
    )  # fmt: skip
    fields = {
        "gpu": (lambda one: (one.resources.gpu_config.gpu_type, one.resources.gpu_config.count), ("", 0), ("H100", 2)),
        "min_containers": (lambda one: one.autoscaler_settings.min_containers, 0, 1),
        "max_containers": (lambda one: one.autoscaler_settings.max_containers, 1, 7),
        "buffer_containers": (lambda one: one.autoscaler_settings.buffer_containers, 0, 2),
        "scaledown_window": (lambda one: one.autoscaler_settings.scaledown_window, 60, 99),
        "max_inputs": (lambda one: one.max_concurrent_inputs, 1000, 32),
        "target_inputs": (lambda one: one.target_concurrent_inputs, 64, 8),
        "secrets and env": (lambda one: len(one.secret_ids), 0, 2),
        "timeout_s": (lambda one: one.timeout_secs, 300, 77),
        "startup_timeout_s": (lambda one: one.startup_timeout_secs, 600, 88),
        "memory_snapshot": (lambda one: one.checkpointing_enabled, False, True),
        "retries": (lambda one: one.retry_policy.retries, 0, 3),
        "cpu": (lambda one: one.resources.milli_cpu, 0, 2500),
        "memory_mib": (lambda one: one.resources.memory_mb, 0, 2048),
        "ephemeral_disk_mib": (lambda one: one.resources.ephemeral_disk_mb, 0, 600_000),
        "volumes": (lambda one: [mount.mount_path for mount in one.volume_mounts], [], ["/data"]),
        "cloud": (lambda one: one.cloud_provider_str, "", "aws"),
        "region": (lambda one: list(one.scheduler_placement.regions), [], ["us-east", "eu-west"]),
        "routing_region": (lambda one: one.routing_region, "", "us-east"),
        "modal": (lambda one: one.block_network, False, True),
    }
    got = {name: (read(plain), read(changed)) for name, (read, _plain, _changed) in fields.items()}
    assert got == {name: (before, after) for name, (_read, before, after) in fields.items()}
    assert second.resources.gpu_config.gpu_type == "A100-80GB"
    assert (plain.scheduler_placement.nonpreemptible, steady.scheduler_placement.nonpreemptible) == (False, True)


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
