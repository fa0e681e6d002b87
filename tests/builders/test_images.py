"""Images as they are declared: what is refused, in which order layers come, and what is locked."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpuserve
from gpuserve import DeclarationError, ImageSpec, SecretSpec
from gpuserve.builders.lowering.image import Lock, _layers
from gpuserve.specs.image_layers import Packages, Sync


def faults(declare):
    with pytest.raises(DeclarationError) as refused:
        declare()
    return refused.value.faults


BASE = ImageSpec.debian("3.11")


def test_all_that_is_wrong_with_one_step_is_told_at_once_with_the_line_to_write():
    found = faults(
        lambda: BASE.pip(
            "torch", "six==1.17.0", index="ftp://x", extra_index="https://me:pw@host/", options="a\nRUN b",
            secrets=("token",), gpu="H999",
        )
    )  # fmt: skip

    assert len(found) == 6
    assert all("write" in fault for fault in found)


@pytest.mark.parametrize(
    ("declare", "line"),
    [
        (BASE.apt, "packages is empty; write one, as in 'ffmpeg'"),
        (BASE.pip, "requirements is empty; write one, as in 'name==version'"),
        (BASE.run, "commands is empty"),
        (BASE.env, "values is empty"),
        (lambda: BASE.uv_sync("/nowhere", groups=("a b",)), "groups got 'a b'; write a name of letters"),
        (lambda: BASE.uv_sync("/nowhere"), "has no pyproject.toml; write the folder that has one"),
        (lambda: BASE.pip("six==1.17.0").uv_sync("/nowhere"), "write .uv_sync() first"),
        (lambda: BASE.local_file("/nowhere/x.txt", "/x"), "write it from the app's own place: Path(__file__).parent"),
        (lambda: BASE.local_dir("/nowhere", "x"), "write an absolute one, as in '/data'"),
        (lambda: BASE.local_python("no_such_module"), "which cannot be imported here"),
        (lambda: BASE.local_python("a b"), "write the name of a module"),
        (lambda: ImageSpec.dockerfile("/nowhere/Dockerfile", context_dir="/nowhere"), "context_dir got '/nowhere'"),
        (lambda: ImageSpec.registry("a/b:1", secret="token"), "write SecretSpec(name='NAME'"),
        (lambda: BASE.locked("image.lock"), "there is nothing to lock; write .pip('name==version') before it"),
        (lambda: BASE.pip("six==1.17.0").locked("/nowhere/image.lock"), "make it: gpuserve lock FILE.py"),
        (lambda: BASE.pip("six==1.17.0", options="--pre").locked("x"), "build that package with .run('pip install"),
        (lambda: ImageSpec.registry("a/b:1").pip("six==1.17.0").locked("x"), "write python='3.11' in its place"),
    ],
)
def test_a_wrong_step_is_refused_with_the_line_to_write(declare, line):
    assert line in "\n".join(faults(declare))


DIGEST = f"sha256:{'0123456789abcdef' * 4}"
BY_DIGEST = """
import modal, gpuserve

app = modal.App("by-digest")

class Base(gpuserve.WarmModelServer):
    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch

@gpuserve.register(app)
class Named(Base):
    image = gpuserve.ImageSpec.registry("ghcr.io/our/base@DIGEST").env(COLOUR="blue")

@gpuserve.register(app)
class Tagged(Base):
    image = gpuserve.ImageSpec.registry("our/base:1.2@DIGEST")

@gpuserve.register(app)
class Cuda(Base):
    image = gpuserve.ImageSpec.cuda("DIGEST", python=None)
"""


def test_a_base_image_named_by_digest_is_what_modal_is_asked_to_build_from(engine, modal_cli, tmp_path, sent):
    """To the last digit, and with the tag if there is one: a tag alone could be another image tomorrow."""
    (tmp_path / "by_digest.py").write_text(BY_DIGEST.replace("DIGEST", DIGEST))
    modal_cli("deploy", "by_digest.py")

    def built_from(name):
        layers = engine.core.registry.image_layers(sent("by-digest", f"{name}.*").image_id)
        return [line for layer in layers for line in layer.dockerfile_commands if line.startswith("FROM ")]

    # what is built upon it follows, each on the one before: nothing else comes from a registry
    assert {name: built_from(name)[0] for name in ("Named", "Tagged", "Cuda")} == {
        "Named": f"FROM ghcr.io/our/base@{DIGEST}",
        "Tagged": f"FROM our/base:1.2@{DIGEST}",
        "Cuda": f"FROM nvidia/cuda@{DIGEST}",
    }
    assert {line for name in ("Named", "Tagged", "Cuda") for line in built_from(name)[1:]} == {"FROM base"}


@pytest.mark.parametrize(
    "digest",
    ["sha256:", DIGEST[:-1], f"{DIGEST}0", DIGEST.upper(), f"sha256:{DIGEST[7:].upper()}", f"sha256:{'g' * 64}",
     DIGEST.replace("256", "512"), DIGEST.removeprefix("sha256:"), f"{DIGEST}@{DIGEST}"],
)  # fmt: skip
def test_a_digest_that_can_be_of_no_image_is_refused_and_the_field_is_named(digest):
    for reference in (f"our/base@{digest}", f"our/base:1.2@{digest}"):
        assert faults(lambda reference=reference: ImageSpec.registry(reference)) == (
            f"reference got the digest {digest!r}; write sha256: and 64 hexadecimal digits",
        )


# Every method that takes text which ends up in a build, by what it is given.
STEPS = {
    "apt": BASE.apt,
    "pip": BASE.pip,
    "index": lambda text: BASE.pip("six==1.17.0", index=text),
    "options": lambda text: BASE.pip("six==1.17.0", options=text),
    "marker": lambda text: BASE.pip(f"six==1.17.0 ; {text}"),
    "url": lambda text: BASE.pip(f"six @ https://example.org/{text}#sha256={'0' * 64}"),
    "run": BASE.run,
    "env name": lambda text: BASE.env(**{text: "x"}),
    "env value": lambda text: BASE.env(A=text),
    "workdir": lambda text: BASE.workdir(f"/{text}"),
    "target": lambda text: BASE.local_file(__file__, f"/{text}"),
    "registry": ImageSpec.registry,
    "cuda": ImageSpec.cuda,
    "build arg": lambda text: ImageSpec.dockerfile(__file__, build_args={"A": text}),
}
HOSTILE = st.one_of(
    st.text(max_size=20),
    st.text(alphabet=list("\n\r\x0b\x85\u2028\\\"'`$(){};&|<># ab=0/-@:"), max_size=20),
    st.sampled_from(["x\nRUN evil", "x\rRUN evil", "$(evil)", "`evil`", "x; evil", "--index-url=http://x\nENV A=b"]),
)


def _never_more_than_one_line(step, text):
    try:
        spec = STEPS[step](text)
    except DeclarationError:
        return
    for line in json.dumps(spec.model_dump(mode="json", exclude={"layers": {"__all__": {"source"}}})).splitlines():
        held = json.loads(line)
        stack = [held]
        while stack:
            one = stack.pop()
            stack += list(one.values()) + list(one) if isinstance(one, dict) else one if isinstance(one, list) else []
            assert not isinstance(one, str) or one.isprintable(), (step, text)


@given(step=st.sampled_from(sorted(STEPS)), text=HOSTILE)
@settings(max_examples=300)
def test_no_text_becomes_a_second_instruction_of_the_build(step, text):
    _never_more_than_one_line(step, text)


@pytest.mark.heavy
@given(step=st.sampled_from(sorted(STEPS)), text=HOSTILE)
@settings(max_examples=5000)
def test_none_of_five_thousand_hostile_texts_becomes_a_second_instruction(step, text):
    _never_more_than_one_line(step, text)


def test_images_are_immutable_and_their_layers_ordered_by_how_rarely_they_change():
    base = ImageSpec.debian("3.11")
    image = base.local_file(__file__, "/a").env(A="1").pip("six==1.17.0").apt("git").run("make")

    assert base.layers == ()
    assert [layer.kind for layer in image.ordered_layers()] == ["apt", "pip", "run", "env", "file"]


names = st.sampled_from(["A", "B", "C"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("apt"), st.sampled_from(["git", "ffmpeg"])),
        st.tuples(st.just("pip"), st.sampled_from(["six==1.17.0", "click==8.1.0"])),
        st.tuples(st.just("env"), st.dictionaries(names, st.sampled_from(["1", "2"]), min_size=1)),
        st.tuples(st.just("run"), st.sampled_from(["make", "true"])),
    ),
    max_size=6,
)


def _image(made):
    image = ImageSpec.debian("3.11")
    for method, value in made:
        image = getattr(image, method)(**value) if method == "env" else getattr(image, method)(value)
    return image


@given(made=steps)
@settings(max_examples=50)
def test_the_fingerprint_is_that_of_what_is_built_and_of_nothing_else(made):
    image = _image(made)

    assert image.fingerprint == _image(made).fingerprint == pickle.loads(pickle.dumps(image)).fingerprint
    turned = [(method, dict(reversed(value.items())) if method == "env" else value) for method, value in made]
    assert _image(turned).fingerprint == image.fingerprint
    assert image.env(Z="9").fingerprint != image.fingerprint
    assert image.workdir("/srv").fingerprint != image.fingerprint


PROGRAM = """
from gpuserve import ImageSpec, SecretSpec
image = (ImageSpec.cuda("12.8.1-devel-ubuntu22.04").env(A="1", B="2", C="3").pip("torch==2.13.0", "six==1.17.0",
         extra_index="https://download.pytorch.org/whl/cu128", secrets=(SecretSpec(name="index"),)).apt("git"))
print(image.fingerprint)
"""


def test_the_fingerprint_is_the_same_in_every_process():
    found = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "31337")
    }
    assert len(found) == 1


def test_what_gpuserve_needs_is_installed_where_the_container_finds_it(tmp_path):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "uv.lock").write_text("")

    plain = _layers(BASE.pip("six==1.17.0").run("make"), http=None)
    assert [type(layer).__name__ for layer in plain] == ["Packages", "Shell"]
    assert "six==1.17.0" in plain[0].requirements
    assert any(one.startswith("pydantic==") for one in plain[0].requirements)

    synced = _layers(BASE.uv_sync(tmp_path).pip("six==1.17.0", index="https://example.org/"), http="asgi")
    assert [type(layer) for layer in synced] == [Sync, Packages, Packages]
    assert any(one.startswith("fastapi==") for one in synced[1].requirements)


def test_secrets_of_a_build_and_its_gpu_are_declared_to_modal():
    image = BASE.pip("six==1.17.0", secrets=(SecretSpec(name="index", required_keys=("TOKEN",)),), gpu="L4")

    assert gpuserve.builders.lowering.image.modal_image(image) is not None
    assert image.layers[0].secrets[0].required_keys == ("TOKEN",)


LOCKED = """
from pathlib import Path
import modal, gpuserve
app = modal.App("locked")
image = gpuserve.ImageSpec.debian("3.12").pip("iniconfig=={version}").locked(Path(__file__).parent / "image.lock")
"""


@pytest.mark.heavy  # the indexes of this day are asked
def test_a_lock_names_every_package_with_its_hashes_and_an_edit_makes_it_out_of_date(tmp_path):
    app, lock = tmp_path / "app.py", tmp_path / "image.lock"
    app.write_text(LOCKED.format(version="2.1.0"))

    def run(*command):
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=100)

    before = run(str(app))
    assert "make it: gpuserve lock FILE.py" in before.stderr
    done = run("-m", "gpuserve.cli", "lock", str(app))
    assert done.returncode == 0, done.stderr
    assert "packages, each with its hashes" in done.stdout
    text = lock.read_text()
    assert text.startswith("# gpuserve image lock ")
    for name in ("iniconfig==2.1.0", "pydantic==", "pydantic-core==", "fastapi=="):
        after = text.partition(f"\n{name}")[2]
        assert "--hash=sha256:" in after.partition("\n")[2].partition("\n")[0]
    assert run(str(app)).stderr == ""

    namespace = {"__file__": str(app), "__name__": "locked"}
    exec(compile(app.read_text(), str(app), "exec"), namespace)
    image = namespace["image"]
    assert [type(layer) for layer in _layers(image.env(A="1"), http="asgi")][:1] == [Lock]
    assert "after .pip(" in faults(lambda: image.pip("six==1.17.0"))[0]

    app.write_text(LOCKED.format(version="2.0.0"))
    assert "was made for other requirements" in run(str(app)).stderr
    assert run("-m", "gpuserve.cli", "lock", str(app)).returncode == 0
    assert "\niniconfig==2.0.0 " in lock.read_text()

    app.write_text(LOCKED.format(version="999"))
    refused = run("-m", "gpuserve.cli", "lock", str(app))
    assert refused.returncode == 2
    assert "uv finds no versions that go together" in refused.stderr
    assert "\niniconfig==2.0.0 " in lock.read_text()
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["app.py", "image.lock"]


def test_a_container_that_imports_the_file_again_needs_none_of_the_files_that_went_into_the_image(tmp_path):
    program = textwrap.dedent("""
        from gpuserve import ImageSpec
        ImageSpec.dockerfile("Dockerfile", context_dir="context").pip("six==1.17.0").local_file("a", "/a")
        ImageSpec.debian("3.11").uv_sync("project").pip("six==1.17.0").locked("image.lock").local_dir("b", "/b")
        print("imported")
    """)
    run = [sys.executable, "-c", program]
    here = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    there = subprocess.run(
        run, cwd=tmp_path, env={**os.environ, "MODAL_IS_REMOTE": "1"}, capture_output=True, text=True, check=False
    )

    assert "path got 'Dockerfile', which is not a file" in here.stderr
    assert there.stdout == "imported\n", there.stderr


def test_a_missing_key_of_a_secret_is_told_with_the_secret_and_never_a_value():
    spec = SecretSpec(name="hub", required_keys=("HF_TOKEN", "HF_USER"))
    with pytest.raises(gpuserve.SecretError) as refused:
        gpuserve.require_keys([spec], {"HF_TOKEN": "", "OTHER": "value-of-it"})

    assert pickle.loads(pickle.dumps(refused.value)).missing == {"hub": ("HF_TOKEN", "HF_USER")}
    assert "the secret 'hub' brought no HF_TOKEN and no HF_USER" in str(refused.value)
    assert "value-of-it" not in str(refused.value)


@pytest.mark.parametrize(
    "reference",
    ["our/base:1.2@", "our/base:1:2", "our//base:1", "Our/Base:1", "/base:1", "base:1/", "base:-1", "b ase:1"],
)
def test_what_is_no_reference_of_an_image_is_refused(reference):
    with pytest.raises(gpuserve.DeclarationError, match="reference got"):
        ImageSpec.registry(reference)


@pytest.mark.parametrize("reference", ["base:1", "Registry.example:5000/our/base:1.2-rc.1_x", "a__b/c-d.e/f:V1"])
def test_references_of_registries_with_ports_and_of_deep_repositories_are_taken(reference):
    ImageSpec.registry(reference)
