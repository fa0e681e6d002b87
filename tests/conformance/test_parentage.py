"""Containers are children of the pre-forked process; only an image that needs it gets an interpreter of its own."""

import pytest

pytestmark = pytest.mark.wide

APP = """
import modal
app = modal.App("parents")
ready = modal.Queue.from_name("ready", create_if_missing=True)
gate = modal.Queue.from_name("gate", create_if_missing=True)

def image(**variables): return modal.Image.debian_slim().env(variables)

def held(name):
    ready.put(name)
    gate.get()

@app.function()
def bare(): held("bare")

@app.function(image=image(HF_HOME="/models", COLOUR="blue"))
def coloured(): held("coloured")

@app.function(image=image(PYTHONHASHSEED="0"))
def seeded(): held("seeded")

@app.function(image=image(LC_ALL="C.UTF-8"))
def localised(): held("localised")

@app.local_entrypoint()
def main():
    import psutil
    forked, seen, found = psutil.Process(ZYGOTE), set(), {"forked": psutil.Process(ZYGOTE).cmdline()}
    for function in (bare, coloured, seeded, localised):
        function.spawn()
        name = ready.get(timeout=60)
        new = [one for one in forked.children() if one.pid not in seen]
        seen |= {one.pid for one in new}
        found[name] = [[line for line in map(psutil.Process.cmdline, one.children(recursive=True))] for one in new]
    gate.put_many([None] * 4)
    report(found)
"""


def test_a_container_is_forked_unless_its_images_variables_are_read_at_an_interpreters_start(run_app, engine):
    found = run_app(APP.replace("ZYGOTE", str(engine.core.launcher._process.pid)))

    forked = found.pop("forked")
    assert "gpuserve.engine.workers.zygote" in forked
    for name in ("bare", "coloured"):  # never another program: it is the pre-forked one's own image
        assert found.pop(name) == [[forked]], name
    assert set(found) == {"seeded", "localised"}
    for name, containers in found.items():
        [[program]] = containers
        assert any(word.endswith("/plain_start.py") for word in program), name
