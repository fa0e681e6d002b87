"""What containers write: printed by `modal run`, followed, fetched afterwards, and told apart."""

import os
import subprocess
import sys

TALK = """
import modal, os, sys, time
app = modal.App("talk")
go = modal.Queue.from_name("go", create_if_missing=True)

@app.function()
def speak(n):
    for i in range(n): print("line", i)
    os.write(1, "é".encode()[:1])
    time.sleep(0.05)
    os.write(1, "é".encode()[1:] + b"\\n")
    sys.stdout.write("par")
    sys.stdout.flush()
    time.sleep(0.05)
    print("tial")
    print("to stderr", file=sys.stderr)
    os.system("echo from a child")

@app.function()
def wait():
    print("first", end="", flush=True)
    go.get(timeout=40)
    print(" and last")

@app.cls()
class Greeter:
    @modal.method()
    def greet(self): print("hello")
    @modal.exit()
    def leave(self): print("good-bye")

@app.local_entrypoint()
def main():
    speak.remote(3)
    Greeter().greet.remote()
"""
SPOKEN = ["line 0", "line 1", "line 2", "é", "partial", "to stderr", "from a child"]

CLIENT = """
import modal
speak, greet = modal.Function.from_name("talk", "speak"), modal.Cls.from_name("talk", "Greeter")().greet
wait = modal.Function.from_name("talk", "wait")
call = speak.spawn(3)
call.get()
greet.remote()
print(call.object_id, speak.object_id)
print(len(list(call.logs.tail(100))), [one.message for one in speak.logs.tail(2, source="stderr")])
waiting, go = wait.spawn(), modal.Queue.from_name("go", create_if_missing=True)
pieces = []
for entry in wait.logs.stream():
    pieces.append(entry.message)
    if entry.message == "first": go.put(1)  # its line has not ended yet
    if "last" in entry.message: break
print(pieces)
"""


def start(engine, *arguments):
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **engine.environment, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_prints_what_its_containers_wrote_in_order_to_the_last_word(modal_cli, tmp_path):
    (tmp_path / "talk.py").write_text(TALK)
    said = modal_cli("run", "talk.py").stdout.splitlines()
    spoken = [line for line in said if line in {*SPOKEN, "hello", "good-bye"}]
    assert spoken[-1] == "good-bye"
    assert [line for line in spoken if line not in {"hello", "good-bye", "to stderr"}] == [
        line for line in SPOKEN if line != "to stderr"
    ]
    assert {"to stderr", "hello"} <= set(spoken)


def test_the_logs_of_a_deployed_app_are_followed_found_again_and_outlive_it(engine, modal_cli, tmp_path):
    (tmp_path / "talk.py").write_text(TALK)
    modal_cli("deploy", "talk.py")
    with start(engine, "-c", CLIENT) as client:
        heads, counted, followed = client.communicate(timeout=60)[0].splitlines()
    call_id, function_id = heads.split()
    assert counted == f"{len(SPOKEN) + 1} ['to stderr\\n']"  # "partial" was written in two pieces
    assert followed == "['first', ' and last\\n']"

    def logs(*arguments):
        return [line for line in modal_cli("app", "logs", "talk", *arguments).stdout.splitlines() if line]

    assert sorted(logs()) == sorted([*SPOKEN, "hello", "first and last"])
    assert sorted(logs("--function-call", call_id)) == sorted(SPOKEN)
    assert logs("--source", "stderr", "--function", function_id, "--show-container-id")[0].startswith("ta-")
    assert logs("--search", "hel", "--since", "1h") == ["hello"]

    with start(engine, "-m", "modal", "app", "logs", "talk", "--follow") as follower:
        modal_cli("app", "stop", "talk", "--yes")
        said = follower.communicate(timeout=60)[0]
        assert follower.returncode == 0, said
    assert "good-bye" in said
    assert "good-bye" in logs("--tail", "5"), "the logs went with the app"
