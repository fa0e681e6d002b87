"""``venv`` mode: images are built from their pins, and a container has what its image brings and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gpuserve.engine import LocalEngine
from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.workers.host_image import LayerContext, plan_image
from gpuserve.engine.workers.image_files import HostFile
from gpuserve.engine.workers.interpreters import find_interpreter
from gpuserve.engine.workers.venvs import Venvs, find_uv
from gpuserve.exceptions import EngineError

pytestmark = pytest.mark.wide

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def _other_python():
    for minor in ("3.12", "3.13", "3.14"):
        try:
            find_interpreter(minor)
        except EngineError:
            continue
        if minor != HERE:
            return minor
    return HERE


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(image_mode="venv") as running:
        yield running


def test_a_container_runs_on_its_images_python_with_its_pins_and_what_the_image_forgets_fails(run_app, engine):
    found = run_app(f"""
        import modal
        app = modal.App("pins")
        image = (modal.Image.debian_slim("{_other_python()}").apt_install("ffmpeg").uv_pip_install("iniconfig==2.1.0")
                 .env({{"COLOUR": "blue"}}).workdir("/srv/here"))

        @app.function(image=image)
        def look():
            import importlib, os, subprocess, sys
            import aiohttp, iniconfig, pip
            def what(name):
                try: importlib.import_module(name)
                except ModuleNotFoundError as error: return str(error), getattr(error, "__notes__", [])
                return "found"
            child = subprocess.run(["python", "-c", "import modal, iniconfig; print(iniconfig.__file__)"],
                                   capture_output=True, text=True)
            try: open(os.path.join(os.path.dirname(iniconfig.__file__), "new.py"), "w").close()
            except OSError as error: refused = error.strerror
            else: refused = "written"
            names = ("pydantic", "click", "gpuserve")
            return {{"python": "%d.%d" % sys.version_info[:2], "forgotten": [what(name) for name in names],
                    "child": child.stdout == iniconfig.__file__ + "\\n", "env": os.environ["COLOUR"],
                    "cwd": os.getcwd(), "prefix": sys.prefix, "others": os.listdir(os.path.dirname(sys.prefix)),
                    "refused": refused, "tokens": [name for name in os.environ if "TOKEN" in name]}}

        @app.local_entrypoint()
        def main(): report(look.remote())
    """)
    prefix = found.pop("prefix")
    others = found.pop("others")
    assert found.pop("refused") in {"Read-only file system", "written"}  # a link cannot be read-only
    assert found == {
        "python": _other_python(),
        "forgotten": [[f"No module named {name!r}", []] for name in ("pydantic", "click", "gpuserve")],
        "child": True,
        "env": "blue",
        "cwd": "/srv/here",
        "tokens": [],
    }
    assert Path(prefix).parent == engine.home / "venvs"
    if "mount" in engine.status()["isolation"]:
        assert len(others) == 2  # its own environment, and modal's client


@pytest.mark.heavy
def test_a_server_that_forgets_a_package_fails_to_load_as_on_modal_and_serves_when_it_is_brought(modal_cli, tmp_path):
    source = """
        import modal, gpuserve
        app = modal.App("shop")

        @gpuserve.register(app)
        class Shop(gpuserve.WarmModelServer):
            image = gpuserve.ImageSpec.debian().pip({pins})
            def load(self):
                import iniconfig
                self.name = iniconfig.__name__
            @gpuserve.batched
            def predict(self, batch: list[int]) -> list[str]:
                return [self.name * item for item in batch]

        @app.local_entrypoint()
        def main(): print("got", Shop().predict.remote(2))
    """
    (tmp_path / "app.py").write_text(textwrap.dedent(source.format(pins='"six==1.17.0"')))
    refused = modal_cli("run", "app.py", check=False)
    assert "No module named 'iniconfig'" in refused.stdout + refused.stderr

    (tmp_path / "app.py").write_text(textwrap.dedent(source.format(pins='"six==1.17.0", "iniconfig==2.1.0"')))
    done = modal_cli("run", "app.py")
    assert "+ iniconfig==2.1.0" in done.stdout + done.stderr  # the build's log
    assert "got iniconfiginiconfig" in done.stdout


@pytest.mark.heavy
def test_a_lock_is_installed_with_its_hashes_and_another_hash_is_refused(modal_cli, tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal, gpuserve
        from gpuserve.builders.lowering import modal_image
        app = modal.App("locked")
        spec = gpuserve.ImageSpec.debian().pip("iniconfig==2.1.0").locked("image.lock")
        @app.function(image=modal_image(spec))
        def look():
            import iniconfig, fastapi
            return iniconfig.__name__
        @app.local_entrypoint()
        def main(): print("got", look.remote())
    """)
    )
    lock = [sys.executable, "-m", "gpuserve.cli", "lock", "app.py"]
    subprocess.run(lock, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "image.lock").read_text()
    head, name, rest = text.partition("\niniconfig==2.1.0")
    block, newline, after = rest.partition("\npackaging==")
    forged = head + name + re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", block) + newline + after
    (tmp_path / "image.lock").write_text(forged)
    refused = modal_cli("run", "app.py", check=False)
    assert refused.returncode != 0
    assert "Hash mismatch for `" in refused.stdout + refused.stderr

    (tmp_path / "image.lock").write_text(text)
    assert "got iniconfig" in modal_cli("run", "app.py").stdout


@pytest.mark.heavy
def test_a_projects_lock_is_synced_and_what_gpuserve_needs_is_there_after_it(modal_cli, tmp_path):
    (tmp_path / "project").mkdir()
    pins = f'dependencies = ["iniconfig==2.1.0"]\nrequires-python = ">={HERE}"\n'
    group = '[dependency-groups]\nextra = ["six==1.17.0"]\n'
    (tmp_path / "project" / "pyproject.toml").write_text(f'[project]\nname = "p"\nversion = "0"\n{pins}{group}')
    subprocess.run([find_uv(), "lock", "--project", "project", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal, gpuserve
        app = modal.App("synced")
        image = gpuserve.ImageSpec.debian().uv_sync("project", groups=("extra",)).env(A="1")
        @app.function(image=gpuserve.modal_image(image), max_containers=1)
        def look():
            import importlib.util, iniconfig, pydantic, six, shutil, sys
            return [importlib.util.find_spec("click") is None, shutil.which("python").startswith(sys.prefix)]
        @app.local_entrypoint()
        def main(): print("got", look.remote())
    """)
    )
    assert "got [True, True]" in modal_cli("run", "app.py").stdout


@pytest.mark.heavy
def test_an_environment_that_no_app_uses_is_pruned_and_one_in_use_is_kept(modal_cli, engine, tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal
        app = modal.App("kept")
        @app.function(image=modal.Image.debian_slim().uv_pip_install("iniconfig==2.0.0"))
        def look():
            import iniconfig
            return iniconfig.__name__
        """)
    )
    modal_cli("deploy", "app.py")
    engine.prune_images()
    left = [one.name for one in (engine.home / "venvs").iterdir()]
    assert sorted(one.startswith("runtime-") for one in left) == [False, True]
    (tmp_path / "call.py").write_text("import modal\nprint(modal.Function.from_name('kept', 'look').remote())\n")
    called = subprocess.run(
        [sys.executable, "call.py"], cwd=tmp_path, env={**os.environ, **engine.environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert called.stdout == "iniconfig\n", called.stderr
    modal_cli("app", "stop", "kept", "--yes")
    assert engine.prune_images()[0] == 1
    assert list((engine.home / "venvs").iterdir()) == []


# -- the building itself -------------------------------------------------------------------------------

FIRST = f"FROM python:{HERE}-slim"


def plan_of(*commands, files=(), python=HERE, secrets=None):
    context = LayerContext("", {name: HostFile(path) for name, path in files}, secrets or {})
    layer = api_pb2.Image(dockerfile_commands=[f"FROM python:{python}-slim", *commands])
    return plan_image([layer], lambda _layer: context)


@pytest.mark.heavy
def test_one_that_many_ask_for_at_once_is_built_once(tmp_path):
    plan = plan_of("RUN pip install iniconfig==2.1.0")

    async def run():
        venvs = Venvs(tmp_path / "venvs", find_uv())
        builds = [venvs.begin(plan) for _ in range(5)]
        made = await asyncio.gather(*(build.result() for build in builds))
        assert len({id(build) for build in builds}) == 1
        assert len({one.folder for one in made}) == 1
        assert [line for line in builds[0].lines if line.strip() == "+ iniconfig==2.1.0"] == [" + iniconfig==2.1.0"]
        assert venvs.is_there(plan)

    asyncio.run(run())


@pytest.mark.heavy
def test_a_failed_build_says_uvs_last_words_leaves_nothing_and_is_tried_again(tmp_path):
    plan = plan_of("RUN pip install iniconfig==0.0.999")

    async def run():
        venvs = Venvs(tmp_path / "venvs", find_uv())
        for _ in range(2):
            with pytest.raises(EngineError, match=r"no version of iniconfig==0.0.999"):
                await venvs.begin(plan).result()
        assert not venvs.is_there(plan)

    asyncio.run(run())
    assert not list((tmp_path / "venvs").glob(".building-*"))


def test_a_python_that_is_not_here_is_told_with_those_that_are(tmp_path):
    with pytest.raises(EngineError, match=rf"has Python 3\.99, and this machine has .*{HERE}.*: install it"):
        Venvs(tmp_path / "venvs", find_uv()).begin(plan_of(python="3.99"))


def test_an_install_that_would_leave_the_environment_is_not_done():
    from gpuserve.engine.workers.venv_steps import notes_of_venv, outside

    plan = plan_of("RUN pip install --target /usr/lib/x six==1.17.0", "RUN make")
    assert [outside(one) for one in plan.installs] == ["--target"]
    assert notes_of_venv(plan) == (
        "not done in venv mode: make",
        "not done in venv mode: pip install --target /usr/lib/x six==1.17.0 (--target)",
    )


SETUP = """\
import os, setuptools
if os.path.exists({gate!r}):
    open({gate!r}).read()  # a pipe: until somebody has written, the build stands here
setuptools.setup(name="slow", version="1", py_modules=["slow"])
"""
BUILDER = """\
import asyncio, sys
sys.path.insert(0, {tests!r})
from test_venv_images import Venvs, find_uv, package_plan
from pathlib import Path
async def main():
    await Venvs(Path({venvs!r}), find_uv()).begin(package_plan(Path({package!r}))).result()
asyncio.run(main())
"""


def package_plan(folder, secrets=None):
    files = [(f"package/{one.name}", one) for one in sorted(folder.iterdir())]
    commands = ("COPY package /package", "RUN pip install --no-build-isolation --no-deps /package")
    return plan_of("RUN pip install setuptools==80.9.0 wheel==0.45.1", *commands, files=files, secrets=secrets)


@pytest.mark.heavy
def test_a_secret_of_the_build_is_there_for_the_build_and_in_nothing_that_it_leaves(tmp_path):
    package, venvs = tmp_path / "package", tmp_path / "venvs"
    package.mkdir()
    setup = "import os, setuptools\nassert os.environ['TOKEN'] == 'planted-canary'\n"
    (package / "setup.py").write_text(f"{setup}setuptools.setup(name='private', version='1', py_modules=['private'])\n")
    (package / "private.py").write_text("")
    told = {"TOKEN": "planted-canary"}

    async def run():
        made = Venvs(venvs, find_uv())
        with pytest.raises(EngineError, match="KeyError: 'TOKEN'"):
            await made.begin(package_plan(package)).result()
        build = made.begin(package_plan(package, secrets=told))
        await build.result()
        assert made.name_of(package_plan(package, secrets=told)) == made.name_of(package_plan(package))
        assert "planted-canary" not in "".join(build.lines) + repr(package_plan(package, secrets=told))

    asyncio.run(run())
    for one in venvs.rglob("*"):
        assert not one.is_file() or b"planted-canary" not in one.read_bytes()


@pytest.mark.heavy
def test_a_build_that_is_killed_midway_leaves_nothing_that_counts_and_is_done_again(tmp_path):
    package, venvs, gate = tmp_path / "package", tmp_path / "venvs", tmp_path / "gate"
    package.mkdir()
    (package / "setup.py").write_text(SETUP.format(gate=str(gate)))
    (package / "slow.py").write_text("ANSWER = 42\n")
    os.mkfifo(gate)
    program = BUILDER.format(tests=str(Path(__file__).parent), venvs=str(venvs), package=str(package))
    builder = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    with gate.open("w"):  # opens once the build reads it
        assert list(venvs.glob(".building-*"))
        builder.kill()
        builder.wait()
    before = {one.name for one in venvs.iterdir()}
    assert any(name.startswith(".building-") for name in before)
    gate.unlink()

    async def again():
        made = Venvs(venvs, find_uv())
        assert not made.is_there(package_plan(package))
        return await made.begin(package_plan(package)).result()

    venv = asyncio.run(again())
    asked = subprocess.run(
        [venv.python, "-c", "import slow; print(slow.ANSWER)"], capture_output=True, text=True, check=True
    )
    assert asked.stdout == "42\n"
