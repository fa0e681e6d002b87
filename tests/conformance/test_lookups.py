"""Deployed apps found by name: from another process, from a container, and with secrets of every kind."""

import json
import os
import subprocess
import sys
import textwrap


def deploy(modal_cli, tmp_path, name, source):
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    return modal_cli("deploy", f"{name}.py")


def client(engine, source):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)],
        env={**os.environ, **engine.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LIBRARY = """
import modal
app = modal.App("library")

@app.function()
def double(x): return 2 * x

@app.cls(max_containers=2)
class Counter:
    start: int = modal.parameter(default=0)
    label: str = modal.parameter(default="n")

    @modal.method()
    def add(self, x): return f"{self.label}{self.start + x}"

@app.function()
def shout(words):
    print("shouting")
    raise LookupError(words.upper())
"""


def test_functions_and_classes_are_found_by_name_from_another_process(engine, modal_cli, tmp_path):
    deploy(modal_cli, tmp_path, "library", LIBRARY)
    found = client(
        engine,
        """
        import json, modal
        double = modal.Function.from_name("library", "double")
        Counter = modal.Cls.from_name("library", "Counter")
        each = []
        double.for_each([1, 2, 3])
        call = double.spawn(21)
        same = modal.FunctionCall.from_id(call.object_id)
        gathered = modal.FunctionCall.gather(double.spawn(1), double.spawn(2))
        try: modal.Function.from_name("library", "missing").remote()
        except modal.exception.NotFoundError as error: missing = str(error)
        print(json.dumps({
            "remote": double.remote(4), "map": list(double.map(range(3))),
            "starmap": list(double.starmap([(1,), (2,)])), "plain": Counter().add.remote(1),
            "other": Counter(start=10, label="x").add.remote(1), "call": same.get(timeout=20), "gathered": gathered,
            "missing": "missing" in missing,
        }))
        """,
    )
    assert found == {
        "remote": 8,
        "map": [0, 2, 4],
        "starmap": [2, 4],
        "plain": "n1",
        "other": "x11",
        "call": 42,
        "gathered": [2, 4],
        "missing": True,
    }


def test_a_remote_exception_carries_its_type_and_its_remote_traceback(engine, modal_cli, tmp_path):
    deploy(modal_cli, tmp_path, "library", LIBRARY)
    found = client(
        engine,
        """
        import json, traceback, modal
        try: modal.Function.from_name("library", "shout").remote("hush")
        except LookupError as error:
            stack = traceback.extract_tb(error.__traceback__)
            frames = [(frame.filename.rpartition("/")[2], frame.name) for frame in stack]
            print(json.dumps({"type": type(error).__name__, "text": str(error), "frames": frames}))
        """,
    )
    assert (found["type"], found["text"]) == ("LookupError", "HUSH")
    assert ["library.py", "shout"] in found["frames"]


def test_a_container_finds_deployed_functions_dicts_and_queues_by_name(modal_cli, run_app, tmp_path):
    deploy(modal_cli, tmp_path, "library", LIBRARY)
    found = run_app("""
        import modal
        app = modal.App("caller")

        @app.function()
        async def inside(x):
            double = modal.Function.from_name("library", "double")
            counter = modal.Cls.from_name("library", "Counter")(start=100)
            box = modal.Dict.from_name("box", create_if_missing=True)
            await box.put.aio("x", x)
            return [await double.remote.aio(x), await counter.add.remote.aio(1),
                    [y async for y in double.map.aio([1, 2])], await box.get.aio("x")]

        @app.local_entrypoint()
        def main(): report(inside.remote(5))
    """)
    assert found == [10, "n101", [2, 4], 5]


def test_secrets_come_by_name_from_a_dict_and_from_a_dotenv_file(run_app, modal_cli, tmp_path):
    (tmp_path / ".env").write_text("FROM_FILE=yes\n")
    modal_cli("secret", "create", "named", "NAMED=1")
    found = run_app("""
        import modal
        app = modal.App("secrets")

        @app.function(secrets=[modal.Secret.from_name("named"), modal.Secret.from_dict({"GIVEN": "2"}),
                               modal.Secret.from_dotenv(__file__)], env={"PLAIN": "3"})
        def look():
            import os
            return [os.environ[name] for name in ("NAMED", "GIVEN", "FROM_FILE", "PLAIN")]

        @app.local_entrypoint()
        def main(): report(look.remote())
    """)
    assert found == ["1", "2", "yes", "3"]


def test_a_secret_without_a_required_key_stops_the_app_and_names_both(modal_cli, tmp_path):
    modal_cli("secret", "create", "poor", "A=1")
    (tmp_path / "app.py").write_text(
        "import modal\napp = modal.App('p')\n"
        "@app.function(secrets=[modal.Secret.from_name('poor', required_keys=['HF_TOKEN'])])\ndef f(): pass\n"
        "@app.local_entrypoint()\ndef main(): f.remote()\n"
    )
    done = modal_cli("run", "app.py", check=False)
    assert done.returncode != 0
    assert "HF_TOKEN" in done.stdout + done.stderr
    assert "poor" in done.stdout + done.stderr
