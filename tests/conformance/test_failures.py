"""What fails, is retried, takes too long or dies: who is told what, and what is run again."""

import textwrap

import pytest

WHAT = """
def what(call):
    try: return call()
    except BaseException as error: return [type(error).__name__, str(error)]
"""


@pytest.fixture
def run(run_app):
    return lambda source: run_app(WHAT + textwrap.dedent(source))


def test_exceptions_come_back_with_their_type_and_their_remote_traceback(run):
    found = run("""
        import modal, threading, traceback
        app = modal.App("exceptions")

        class OwnError(Exception):
            def __init__(self, code, text):
                super().__init__(code, text)
                self.code = code

        class Held(Exception):
            def __init__(self):
                super().__init__("held")
                self.lock = threading.Lock()

        @app.function()
        def fail(how):
            if how == "own": raise OwnError(7, "mine")
            if how == "held": raise Held()
            if how == "exit": raise SystemExit(3)
            if how == "base": raise BaseException("base")
            if how == "lock": return threading.Lock()
            if how == "cancel": raise __import__("asyncio").CancelledError
            if how == "chained":
                try: {}["inner"]
                except KeyError as error: raise ValueError("outer") from error
            return how

        @app.local_entrypoint()
        def main():
            found = {how: what(lambda: fail.remote(how)) for how in ("held", "exit", "base", "lock", "cancel")}
            try: fail.remote("own")
            except OwnError as error: found["own"] = [error.code, str(error)]
            try: fail.remote("chained")
            except ValueError as error:
                found["frames"] = [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1]
            kinds = fail.map(["a", "own", "b"], return_exceptions=True)
            found["returned"] = [one if isinstance(one, str) else type(one).__name__ for one in kinds]
            found["raised"] = what(lambda: list(fail.map(["a", "own", "b"])))
            found["spawned"] = what(fail.spawn("own").get)
            report(found)
    """)
    assert found["held"][0] == "SerializationError"
    assert "cannot pickle '_thread.lock'" in found["held"][1]
    assert found["exit"] == ["SystemExit", "3"]
    assert found["base"] == ["BaseException", "base"]
    assert found["lock"][0] == "TypeError"
    assert found["cancel"] == ["RemoteError", "its container broke the input off, unasked"]
    assert found["own"] == [7, "(7, 'mine')"]
    assert found["frames"] == "fail"
    assert found["returned"] == ["a", "OwnError", "b"]
    assert found["raised"] == found["spawned"] == ["OwnError", "(7, 'mine')"]


def test_failed_inputs_are_retried_with_growing_delays_whoever_called(run):
    found = run("""
        import modal, time
        app = modal.App("retries")
        runs = modal.Dict.from_name("runs", create_if_missing=True)
        times = modal.Queue.from_name("times", create_if_missing=True)

        @app.function(retries=modal.Retries(max_retries=3, initial_delay=0.3, backoff_coefficient=2.0, max_delay=1.0))
        def lucky(key, good_at):
            runs[key] = n = runs.get(key, 0) + 1
            times.put(time.monotonic(), partition=key)
            if n < good_at: raise ValueError(n)
            return n

        @app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0))
        def counted(key, good_at): return lucky.local(key, good_at)

        @app.local_entrypoint()
        def main():
            found = {"remote": lucky.remote("remote", 3)}
            seen = [times.get(partition="remote", timeout=5) for _ in range(3)]
            found["delays"] = [b - a for a, b in zip(seen, seen[1:])]
            found["spawn"] = counted.spawn("spawn", 2).get()
            found["map"] = list(counted.starmap([("a", 1), ("b", 3), ("c", 2)]))
            found["spent"] = [what(lambda: counted.remote("spent", 99)), runs["spent"]]
            found["without"] = what(lambda: lucky.with_options(retries=modal.Retries(max_retries=0)).remote("no", 2))
            report(found)
    """)
    first, second = found.pop("delays")
    assert 0.3 <= first < second
    assert second >= 0.6
    assert found["spent"] == [["ValueError", "3"], 3]
    assert (found["remote"], found["spawn"], found["map"]) == (3, 2, [1, 3, 2])
    assert found["without"] == ["ValueError", "1"]


def test_an_input_whose_container_dies_is_run_again_and_takes_no_other_with_it(run):
    found = run("""
        import asyncio, modal, os, signal
        app = modal.App("deaths")
        runs = modal.Dict.from_name("runs2", create_if_missing=True)
        begun = set()

        def again(key):
            runs[key] = n = runs.get(key, 0) + 1
            return n

        @app.function()
        def dies(key, how, good_at):
            n = again(key)
            if n < good_at:
                print("last words", n, flush=True)
                if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
                if how == "keyboard": raise KeyboardInterrupt
                os._exit(7)
            return n

        @app.function(max_containers=1)
        @modal.concurrent(max_inputs=4)
        async def shared(x):
            n = again(f"shared{x}")
            begun.add(x)
            while n == 1 and len(begun) < 4: await asyncio.sleep(0.01)  # the first death is one of all four
            await asyncio.sleep(0.2)
            if x == 0: os._exit(5)
            await asyncio.sleep(0.2)
            return [x, n]

        @app.function(max_containers=1, retries=1)
        @modal.batched(max_batch_size=3, wait_ms=200)
        def batch(xs):
            ns = [again(f"batch{x}") for x in xs]
            if 0 in xs: os._exit(6)
            return [[x, n] for x, n in zip(xs, ns)]

        def outcome(x): return x if isinstance(x, list) else type(x).__name__

        @app.local_entrypoint()
        def main():
            found = {"again": [dies.remote("exit", "exit", 2), dies.remote("keyboard", "keyboard", 2)]}
            found["loop"] = [what(lambda: dies.remote("loop", "exit", 99)), runs["loop"]]
            found["killed"] = what(lambda: dies.remote("killed", "kill", 99))
            found["shared"] = [outcome(x) for x in shared.map(range(4), return_exceptions=True)]
            found["batch"] = [outcome(x) for x in batch.map(range(3), return_exceptions=True)]
            found["runs"] = [runs[f"{kind}{x}"] for kind in ("shared", "batch") for x in range(3)]
            report(found)
    """)
    assert found["again"] == [2, 2]
    (kind, text), runs = found["loop"]
    assert (kind, runs) == ("RemoteError", 4)
    assert "exited with code 7 while it ran this input. Its last log lines:\nlast words 4" in text
    assert "was killed by signal 9 (out of memory, or killed from outside)" in found["killed"][1]
    assert found["shared"] == ["RemoteError", [1, 2], [2, 2], [3, 2]]
    assert found["batch"] == ["RemoteError", [1, 2], [2, 2]]
    assert found["runs"] == [4, 2, 2, 4, 2, 2], "the poisoned input's mates were run with it again"


def test_an_input_that_takes_too_long_ends_whatever_its_code_does(run, monkeypatch):
    monkeypatch.setattr("gpuserve.engine.workers.deadlines.ENDING_GRACE_S", 3.0)
    found = run("""
        import asyncio, modal, os, time
        app = modal.App("timeouts")
        runs = modal.Dict.from_name("runs3", create_if_missing=True)
        seen = modal.Queue.from_name("seen3", create_if_missing=True)

        @app.cls(timeout=1, max_containers=1)
        class Slow:
            @modal.method()
            def sleep(self, how):
                if how == "quick": return "served"
                began = time.monotonic()
                while time.monotonic() - began < 60:
                    try: time.sleep(60)
                    except BaseException as error:
                        if how == "gives way": raise
            @modal.exit()
            def end(self): seen.put("left")

        @app.function(timeout=1, retries=modal.Retries(max_retries=1, initial_delay=0.0), max_containers=1)
        @modal.concurrent(max_inputs=3)
        async def together(x):
            runs[x] = n = runs.get(x, 0) + 1
            if x and n == 1: await asyncio.sleep(60)
            return [x, n, os.environ["MODAL_TASK_ID"]]

        @app.cls(startup_timeout=1, timeout=50)
        class Starts:
            @modal.enter()
            def load(self):
                print("loading for ever", flush=True)
                time.sleep(60)
            @modal.method()
            def call(self): return 1

        @app.local_entrypoint()
        def main():
            slow = Slow()
            found = {"ended": what(lambda: slow.sleep.remote("gives way")), "left": seen.get(timeout=10)}
            found["stubborn"] = what(lambda: slow.sleep.remote("stays"))
            found["next"] = slow.sleep.remote("quick")
            found["start"] = what(lambda: Starts().call.remote())
            found["retried"] = list(together.map(range(3)))
            report(found)
    """)
    for name in ("ended", "stubborn"):
        assert found[name][0] == "FunctionTimeoutError"
        assert "ran longer than its timeout of 1 s" in found[name][1]
    assert (found["left"], found["next"]) == ("left", "served")
    assert "was not ready within its start-up time-out of 1 s. Its last log lines:" in found["start"][1]
    assert "loading for ever" in found["start"][1]
    task = found["retried"][0][2]
    assert found["retried"] == [[0, 1, task], [1, 2, task], [2, 2, task]], (
        "a time-out in one of them ended the container"
    )


def test_a_container_that_dies_at_its_start_ends_the_wait_with_its_last_lines(modal_cli, tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal
        app = modal.App("crash")
        @app.cls()
        class Crashes:
            @modal.enter()
            def begin(self):
                import os
                print("the disk is made of cheese", flush=True)
                os._exit(3)
            @modal.method()
            def work(self): return 1
        @app.local_entrypoint()
        def main(): Crashes().work.remote()
        """)
    )
    done = modal_cli("run", "app.py", check=False)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "exited with code 3 before it was ready" in said
    assert "the disk is made of cheese" in said
