"""GPUs, secrets and volumes are refused in the same words, whichever builder they are given to."""

import modal
import pytest

import gpuserve

BUILDERS = {
    "server": (gpuserve.WarmModelServer, {}),
    "job": (gpuserve.ScheduledJob, {"schedule": gpuserve.Schedule.cron("0 2 * * *"), "run": lambda *_: None}),
    "training": (gpuserve.FineTuneJob, {}),
}
BAD = {
    "a number for a GPU": ("gpu", 3, "gpu.* got 3"),
    "no GPU of Modal's": ("gpu", ["L4", "Z9"], "'Z9' is not a GPU that Modal has"),
    "bytes that name none": ("gpu", b"", "gpu='' is not a GPU that Modal has"),
    "bytes among names": ("gpu", ["L4", b"Z9"], "'Z9' is not a GPU that Modal has"),
    "a word for a secret": ("secrets", ("token",), r"write SecretSpec\(name=…\) or a modal.Secret"),
    "a relative mount": ("volumes", {"models": 1}, "'models' is not a folder to mount at"),
    "the root": ("volumes", {"/": 1}, "'/' is not a folder to mount at"),
    "a path that climbs": ("volumes", {"/a/../b": 1}, "'/a/../b' is not a folder to mount at"),
}


@pytest.mark.parametrize(("field", "value", "words"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("builder", BUILDERS)
def test_a_bad_option_is_named_with_its_field_by_every_builder(builder, field, value, words):
    base, rest = BUILDERS[builder]
    declared = {"image": gpuserve.ImageSpec.debian(), **rest, field: value}

    with pytest.raises(gpuserve.DeclarationError, match=words) as refused:
        gpuserve.register(modal.App("options"))(type("Declared", (base,), declared))

    assert any(fault.startswith(field) for fault in refused.value.faults)
