"""Every way to say what is in an image, compared with what is installed and seen from its container."""

from __future__ import annotations

import json
import sys
import textwrap
from importlib.metadata import version

import pytest

from gpuserve.engine import LocalEngine

pytestmark = pytest.mark.wide

HEAD = "import json, modal, os, pathlib\ndef report(found): pathlib.Path('report.json').write_text(json.dumps(found))\n"
OTHER = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(image_check="warn") as running:
        yield running


@pytest.fixture
def build(engine, tmp_path, modal_forks):
    """Run an app; return what it reports, and all that was said of its images in one line."""

    def run(source: str, **environment: str) -> tuple[dict, str]:
        (tmp_path / "app.py").write_text(HEAD + textwrap.dedent(source))
        whole = {**engine.environment, **environment, "COLUMNS": "200"}
        done = modal_forks("run", "app.py", environment=whole, folder=tmp_path)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "report.json").read_text()), said

    return run


DOCKERFILE = """\
# syntax=docker/dockerfile:1
FROM python:{other}-slim AS whole
ARG COLOUR=red
ARG SHAPE
ENV COLOUR=${{COLOUR}} NAME="two words" \\
    TWICE=$COLOUR-$COLOUR

ENV PATH=/opt/tools:$PATH
WORKDIR /srv
WORKDIR app
COPY requirements.txt more.txt ./
RUN --mount=type=cache,target=/root/.cache pip install --no-cache-dir -r requirements.txt \\
    # a comment between
    && make everything
COPY --chmod=755 tools /opt/tools
COPY src/*.py code/
COPY . /everything
RUN apt-get install -y ffmpeg
ENTRYPOINT ["/bin/true"]
CMD ["sleep", "1"]
"""


def test_a_dockerfile_is_read_as_docker_reads_it(build, tmp_path):
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.format(other=OTHER))
    (tmp_path / ".dockerignore").write_text("secret.txt\n*.log\n")
    (tmp_path / "requirements.txt").write_text(f"# ours\n-r more.txt\nhttpx=={version('httpx')}  # pinned\n")
    (tmp_path / "more.txt").write_text('rich >= 1 \\\n   ; python_version < "3"\nclick==1.0\n')
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "hello").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "src").mkdir()
    for name in ("src/a.py", "src/b.txt", "secret.txt", "x.log"):
        (tmp_path / name).write_text("")
    found, said = build("""
        app = modal.App("dockerfile")
        image = modal.Image.from_dockerfile("Dockerfile", build_args={"COLOUR": "blue"}).env({"LAST": "1"})
        @app.function(image=image)
        def look():
            import subprocess, httpx
            hidden = []
            for name in ("hypothesis", "psutil"):
                try: __import__(name)
                except ModuleNotFoundError: hidden.append(name)
            kept = {name: os.environ.get(name) for name in ("COLOUR", "NAME", "TWICE", "LAST")}
            return {**kept, "cwd": os.getcwd(), "here": sorted(os.listdir("."))[:3], "code": os.listdir("code"),
                    "tool": subprocess.run(["hello"], capture_output=True, text=True).stdout, "hidden": hidden,
                    "everything": sorted(os.listdir("/everything"))}
        @app.local_entrypoint()
        def main(): report(look.remote())
    """)

    assert sorted(set(found.pop("everything")) - {"__pycache__"}) == sorted(
        ["Dockerfile", ".dockerignore", "app.py", "more.txt", "requirements.txt", "src", "tools"]
    )
    assert found == {
        "COLOUR": "blue", "NAME": "two words", "TWICE": "blue-blue", "LAST": "1", "cwd": "/srv/app",
        "here": ["code", "more.txt", "requirements.txt"], "code": ["a.py"], "tool": "hello\n",
        "hidden": ["hypothesis", "psutil"],
    }  # fmt: skip
    assert f"click==1.0 is asked for, and {version('click')} is installed" in said
    assert "httpx==" not in said
    for line in ("make everything", "apt-get install -y ffmpeg", 'ENTRYPOINT ["/bin/true"]'):
        assert f"not done in host mode: {line}" in said
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"this image has Python {OTHER}, and containers run on Python {here} here" in said


UV_LOCK = """\
version = 1
[[package]]
name = "project"
version = "0"
source = {{ virtual = "." }}
dependencies = [{{ name = "httpx" }}, {{ name = "never", marker = "python_full_version < '3'" }}]
[package.optional-dependencies]
fast = [{{ name = "psutil" }}]
[package.dev-dependencies]
dev = [{{ name = "hypothesis" }}]
docs = [{{ name = "pytest" }}]
[[package]]
name = "httpx"
version = "{httpx}"
source = {{ registry = "https://pypi.org/simple" }}
dependencies = [{{ name = "idna" }}]
[[package]]
name = "idna"
version = "0.1"
source = {{ registry = "https://pypi.org/simple" }}
[[package]]
name = "psutil"
version = "0.2"
source = {{ registry = "https://pypi.org/simple" }}
[[package]]
name = "hypothesis"
version = "{hypothesis}"
source = {{ registry = "https://pypi.org/simple" }}
[[package]]
name = "pytest"
version = "0.3"
source = {{ registry = "https://pypi.org/simple" }}
"""
POETRY_LOCK = """\
[[package]]
name = "idna"
version = "0.4"
optional = false
groups = ["main"]
[[package]]
name = "never"
version = "1"
optional = false
groups = ["main"]
markers = "python_version < '3'"
[[package]]
name = "psutil"
version = "0.5"
optional = false
groups = ["dev"]
"""


RECIPES = f"""
app = modal.App("recipes")
base = modal.Image.debian_slim()
cuda = "nvidia/cuda:12.8.1-runtime-ubuntu24.04"
def fetch(): pass
images = {{
    "uv": base.uv_sync("uv", extras=["fast"]),
    "plain": base.pip_install_from_pyproject("plain/pyproject.toml", ["more"]),
    "poetry": base.poetry_install_from_file("poetry/pyproject.toml", without=["dev"]),
    "files": base.pip_install_from_requirements("requirements.txt").uv_pip_install(requirements=["twice.txt"]),
    "conda": modal.Image.micromamba(python_version="{OTHER}").micromamba_install("cudatoolkit", channels=["nvidia"]),
    "registry": modal.Image.from_registry(cuda, add_python="{OTHER}")
                .pip_install("git+https://example.invalid/some.git", "click>=8", extra_index_url="https://x.invalid")
                .pipe(lambda image, name: image.env({{"PIPED": name}}), "yes"),
    "copied": base.add_local_dir("uv", "/opt/uv", copy=True).add_local_file("requirements.txt", "/opt/", copy=True)
              .run_commands("make more").run_function(fetch),
    "again": base.pip_install("idna==0.1").pip_install("idna=={version("idna")}"),
}}
def look():
    import importlib.util
    asked = ("httpx", "hypothesis", "psutil", "pytest", "rich")
    return {{"can": [name for name in asked if importlib.util.find_spec(name)], "piped": os.environ.get("PIPED"),
            "opt": sorted(str(one) for one in pathlib.Path("/opt/uv").rglob("*")) + sorted(
                str(one) for one in pathlib.Path("/opt").glob("req*"))}}
""" + "".join(
    f"@app.function(image=images[{name!r}])\ndef {name}(): return look()\n"
    for name in ("uv", "plain", "poetry", "files", "conda", "registry", "copied", "again")
)
RECIPES += """
@app.local_entrypoint()
def main():
    calls = [one.spawn() for one in (uv, plain, poetry, files, registry, copied, again)]
    names = ("uv", "plain", "poetry", "files", "registry", "copied", "again")
    report({name: call.get() for name, call in zip(names, calls)})
"""


def test_locked_and_declared_requirements_are_compared_one_by_one(build, tmp_path):
    project = {
        "uv/pyproject.toml": '[project]\nname = "project"\nversion = "0"\ndependencies = ["httpx"]\n',
        "uv/uv.lock": UV_LOCK.format(httpx=version("httpx"), hypothesis=version("hypothesis")),
        "plain/pyproject.toml": '[project]\nname = "p"\nversion = "0"\ndependencies = ["rich==0.6"]\n'
        '[project.optional-dependencies]\nmore = ["pygments==0.7"]\n',
        "poetry/pyproject.toml": '[tool.poetry]\nname = "p"\n',
        "poetry/poetry.lock": POETRY_LOCK,
        "requirements.txt": "packaging==0.8\n",
        "twice.txt": "typing-extensions==0.9\n",
    }
    for name, text in project.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found, said = build(RECIPES)

    from_locks = ("idna==0.1", "psutil==0.2", "idna==0.4")
    for text in (*from_locks, "rich==0.6", "pygments==0.7", "packaging==0.8", "typing-extensions==0.9"):
        name = text.partition("==")[0]
        assert f"{text} is asked for, and {version(name)} is installed" in said, text
    for text in ("never", "pytest==0.3", "psutil==0.5", "httpx==", "click"):
        assert f"{text} is asked for" not in said
    assert said.count("idna==0.1 is asked for") == 1 + 1  # by uv.lock, and by the layer that another one corrects
    assert "not compared in host mode: git+https://example.invalid/some.git" in said
    for line in ("micromamba install cudatoolkit", "make more", "run_function"):
        assert f"not done in host mode: {line}" in said
    assert f"this image has Python {OTHER}" in said
    assert {name: one["can"] for name, one in found.items()} == {
        "uv": ["httpx", "hypothesis", "psutil", "rich"], "plain": ["rich"], "poetry": ["rich"], "files": ["rich"],
        "registry": ["rich"], "copied": ["rich"], "again": ["rich"],
    }  # fmt: skip
    assert found["registry"]["piped"] == "yes"
    assert found["copied"]["opt"] == ["/opt/uv/pyproject.toml", "/opt/uv/uv.lock", "/opt/requirements.txt"]


def test_what_an_image_does_not_bring_is_hidden_down_to_its_metadata(build, tmp_path):
    site = tmp_path / "brought"
    site.mkdir()
    (site / "psutil.py").write_text("OURS = True\n")
    found, _said = build("""
        app = modal.App("hidden")
        base = modal.Image.debian_slim().pip_install("fastapi", "httpx[http2]")
        image = base.add_local_dir("brought", "/opt/brought")
        @app.function(image=image)
        def look():
            import importlib, importlib.metadata, importlib.util, pkgutil, sys
            def state(name):
                try: importlib.import_module(name)
                except ModuleNotFoundError as error: return str(error)
                return "there"
            def known(name):
                try: return bool(importlib.metadata.version(name))
                except importlib.metadata.PackageNotFoundError: return False
            seen = {name: state(name) for name in ("fastapi", "starlette", "pydantic_core", "httpx", "hypothesis",
                                                   "torch", "gpuserve", "psutil", "pip")}
            sys.path.append("/opt/brought")
            import psutil
            return {"seen": seen, "known": [known(name) for name in ("fastapi", "hypothesis")], "ours": psutil.OURS,
                    "looked for": [bool(importlib.util.find_spec(one)) for one in ("fastapi", "hypothesis")],
                    "listed": "hypothesis" in {one.name for one in importlib.metadata.distributions()}}
        @app.local_entrypoint()
        def main(): report(look.remote())
    """)

    hidden = ("hypothesis", "torch", "gpuserve", "psutil")
    assert found["seen"] == {
        **dict.fromkeys(("fastapi", "starlette", "pydantic_core", "httpx", "pip"), "there"),
        **{name: f"No module named '{name}'" for name in hidden},
    }
    assert found["known"] == found["looked for"] == [True, False]
    assert found["ours"] is True
    assert found["listed"] is False
