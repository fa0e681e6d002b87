"""The versions of a deployed app: the running finish, the new take over, and the old can be had again."""

import textwrap

import modal
import pytest

ONE = """
import modal, os, time
app = modal.App("versions")
heard = modal.Queue.from_name("heard", create_if_missing=True)
CODE = "one"

@app.function(max_containers=2)
def f(wait=0):
    if wait:
        heard.put("running")
        heard.get(partition="go", timeout=40)
    return CODE

@app.function()
def through(): return f.remote() + " through " + CODE

@app.cls()
class Model:
    p: str = modal.parameter(default="d")
    @modal.method()
    def say(self): return [CODE, self.p]
    @modal.exit()
    def end(self): heard.put(CODE + self.p, partition="left")
"""
TWO = ONE.replace('"one"', '"two"') + '\n@app.function()\ndef only_two(): return "only"\n'
THREE = ONE.replace('"one"', '"three"').replace("def through()", "def renamed()")

LOOK_UP = """
def named(name, version=None): return modal.Function.from_name("versions", name, version=version)
"""


@pytest.fixture
def client(program):
    """Run a client's program beside the three versions of an app."""
    return lambda source: program(LOOK_UP + textwrap.dedent(source), one=ONE, two=TWO, three=THREE)


def test_a_running_input_ends_on_its_own_code_and_every_handle_gets_the_new(client):
    found = client("""
        cli("deploy", "one.py")
        f, model = named("f"), modal.Cls.from_name("versions", "Model")
        handles = [f, f.with_options(timeout=50), model().say, model(p="x").say, named("through")]
        heard = modal.Queue.from_name("heard", create_if_missing=True)
        found["before"] = [one.remote() for one in handles]
        running = f.spawn(1)
        heard.get(timeout=20)
        cli("deploy", "two.py")
        found["after"] = [one.remote() for one in handles]
        heard.put(1, partition="go")
        found["running"] = running.get(timeout=20)
        found["left"] = sorted(heard.get(partition="left", timeout=20) for _ in range(2))
        only = named("only_two")
        found["only"] = only.remote()
        cli("deploy", "three.py")
        found["removed"] = [what(only.remote), what(named("only_two").remote), what(named("through").remote)]
    """)
    assert found["before"] == ["one", "one", ["one", "d"], ["one", "x"], "one through one"]
    assert found["after"] == ["two", "two", ["two", "d"], ["two", "x"], "two through two"]
    assert found["running"] == "one"
    assert found["left"] == ["oned", "onex"]
    assert found["only"] == "only"
    held, named, through = found["removed"]
    assert "has no function 'only_two'" in held
    assert "app 'versions' has no function 'only_two'; it has: f, renamed" in named
    assert "no function 'through'" in through


def test_an_older_version_is_found_by_its_number_and_put_back_by_a_rollback(client):
    found = client("""
        cli("deploy", "one.py", "--tag", "first")
        cli("deploy", "two.py")
        first = int(json.loads(cli("app", "history", "versions", "--json"))[1]["version"][1:])
        pinned = modal.Cls.from_name("versions", "Model", version=first)
        old = [named("f", first), named("through", first), pinned().say, pinned(p="y").say]
        found["pinned"] = [one.remote() for one in old]
        found["now"] = named("f").remote()
        found["not yet"] = what(named("only_two", first).remote)
        found["unknown"] = what(named("f", 99).remote)
        handle, only = named("f"), named("only_two")
        cli("deploy", "three.py")
        found["said"] = cli("app", "rollback", "versions")
        found["back"] = [handle.remote(), only.remote(), named("through").remote(), named("f", first + 2).remote()]
        cli("app", "rollback", "versions", f"v{first}")
        found["first"] = [handle.remote(), what(only.remote), named("through").remote()]
        found["no such"] = cli("app", "rollback", "versions", "v99")
        found["history"] = json.loads(cli("app", "history", "versions", "--json"))[:4]
    """)
    assert found["pinned"] == ["one", "one through one", ["one", "d"], ["one", "y"]]
    assert found["now"] == "two"
    assert "has no function 'only_two'; it has: f, through" in found["not yet"]
    assert "version v99 of app 'versions' is not kept; those that are: v" in found["unknown"]
    assert "rollback successful" in found["said"]
    assert found["back"] == ["two", "only", "two through two", "three"]
    assert found["first"][0] == "one"
    assert "has no function 'only_two'" in found["first"][1]
    assert found["first"][2] == "one through one"
    assert "version v99 of app 'versions' is not kept" in found["no such"]
    newest = [one["version"] for one in found["history"]]
    assert newest == sorted(newest, key=lambda one: -int(one[1:]))
    assert found["history"][0]["tag"] == "first"
    assert {one["client"] for one in found["history"]} == {modal.__version__}


def test_a_rollover_renews_the_containers_and_a_staged_version_waits_for_its_promotion(client):
    found = client("""
        cli("deploy", "one.py")
        model = modal.Cls.from_name("versions", "Model")()
        heard = modal.Queue.from_name("heard", create_if_missing=True)
        heard.clear(all=True)
        found["before"] = model.say.remote()
        cli("app", "rollover", "versions")
        found["rolling"] = [heard.get(partition="left", timeout=20), model.say.remote()]
        cli("app", "rollover", "versions", "--strategy", "recreate")
        found["recreated"] = [heard.get(partition="left", timeout=20), model.say.remote()]
        cli("deploy", "two.py", "--staged")
        staged = json.loads(cli("app", "history", "versions", "--json"))[0]["version"]
        found["staged"] = [named("f").remote(), named("f", int(staged[1:])).remote(), model.say.remote()]
        found["refused"] = cli("app", "promote", "versions", "v1")
        cli("app", "promote", "versions", staged)
        found["promoted"] = [named("f").remote(), named("only_two").remote(), model.say.remote()]
    """)
    assert found["before"] == ["one", "d"]
    assert found["rolling"] == found["recreated"] == ["oned", ["one", "d"]]
    assert found["staged"] == ["one", "two", ["one", "d"]]
    assert "is not staged; those that are: v" in found["refused"]
    assert found["promoted"] == ["two", "only", ["two", "d"]]
