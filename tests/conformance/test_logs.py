"""What containers write: printed by `modal run`, followed, fetched afterwards, and told apart."""

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


def test_a_run_prints_what_its_containers_wrote_in_order_to_the_last_word(program):
    said = program('found = cli("run", "talk.py")', talk=TALK).splitlines()
    spoken = [line for line in said if line in {*SPOKEN, "hello", "good-bye"}]
    assert spoken[-1] == "good-bye"
    by_print = [line for line in SPOKEN if line != "to stderr"]
    assert [line for line in spoken if line in by_print] == by_print
    assert {"to stderr", "hello"} <= set(spoken)


def test_the_logs_of_a_deployed_app_are_followed_found_again_and_outlive_it(program):
    found = program(
        """
        import threading
        def logs(*arguments): return [line for line in cli("app", "logs", "talk", *arguments).splitlines() if line]

        cli("deploy", "talk.py")
        speak, wait = modal.Function.from_name("talk", "speak"), modal.Function.from_name("talk", "wait")
        greet = modal.Cls.from_name("talk", "Greeter")().greet
        call = speak.spawn(3)
        call.get()
        greet.remote()
        found["of a call"] = len(list(call.logs.tail(100)))
        found["of a function"] = [one.message for one in speak.logs.tail(2, source="stderr")]
        waiting = wait.spawn()
        go, found["pieces"] = modal.Queue.from_name("go", create_if_missing=True), []
        for entry in wait.logs.stream():
            found["pieces"].append(entry.message)
            if entry.message == "first": go.put(1)  # its line has not ended yet
            if "last" in entry.message: break
        waiting.get()  # or the stop cancels it, which the log tells last
        found["all"] = logs()
        found["--function-call"] = logs("--function-call", call.object_id)
        found["--source"] = logs("--source", "stderr", "--function", speak.object_id, "--show-container-id")
        found["--search"] = logs("--search", "hel", "--since", "1h")
        app_id = json.loads(cli("app", "list", "--json"))[0]["app_id"]
        seen = []
        def follow(): seen.extend(entry.message for entry in modal.App.lookup("talk").logs.stream())
        follower = threading.Thread(target=follow)
        follower.start()
        found["stop"] = cli("app", "stop", "talk", "--yes")
        follower.join(60)
        found["followed"] = seen[-1]
        found["afterwards"] = logs("--tail", "3")
        found["to the end"] = cli("app", "logs", app_id, "--follow").splitlines()[-1]
        """,
        talk=TALK,
    )
    assert found["of a call"] == len(SPOKEN) + 1, "'partial' was written in two pieces"
    assert found["of a function"] == ["to stderr\n"]
    assert found["pieces"] == ["first", " and last\n"]
    assert sorted(found["all"]) == sorted([*SPOKEN, "hello", "first and last"])
    assert sorted(found["--function-call"]) == sorted(SPOKEN)
    assert [line.split(" ", 1)[1] for line in found["--source"]] == ["to stderr"]
    assert found["--source"][0].startswith("ta-")
    assert found["--search"] == ["hello"]
    assert found["followed"] == "good-bye\n"
    assert found["afterwards"][-1] == found["to the end"] == "good-bye"
