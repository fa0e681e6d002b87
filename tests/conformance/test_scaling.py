"""Containers come and go as the autoscaler's settings say, and nothing of them stays."""

import psutil
import pytest


@pytest.fixture(autouse=True)
def short_polls(monkeypatch):
    """An idle container asks again this often: asking must not count as work."""
    monkeypatch.setattr("gpuserve.engine.services.containers._HOLD_INPUTS_S", 0.3)


def test_an_idle_container_leaves_after_its_window_and_a_busy_one_stays(run_app):
    found = run_app("""
        import modal, os, time
        app = modal.App("idle")
        left = modal.Queue.from_name("left", create_if_missing=True)

        @app.cls(scaledown_window=2, max_containers=2)
        class Idle:
            @modal.enter()
            def begin(self): self.me = os.environ["MODAL_TASK_ID"]
            @modal.method()
            def who(self, seconds):
                time.sleep(seconds)
                return self.me
            @modal.exit()
            def end(self): left.put([self.me, time.monotonic()])

        @app.local_entrypoint()
        def main():
            idle = Idle()
            first, ended = idle.who.remote(0), time.monotonic()
            gone, at = left.get(timeout=20)
            second = idle.who.remote(2.5)
            report([first == gone, at - ended, second != first, left.len(), idle.who.remote(0) == second])
    """)
    mine, waited, another, others_left, same = found
    assert (mine, another, others_left, same) == (True, True, 0, True)
    assert 1.9 < waited < 10


def test_minimum_and_buffer_containers_stand_ready_and_the_cap_holds(engine, run_app):
    found = run_app("""
        import modal, os, time
        app = modal.App("ready")
        born = modal.Queue.from_name("born", create_if_missing=True)
        go = modal.Queue.from_name("go", create_if_missing=True)

        @app.cls(min_containers=2)
        class Warm:
            @modal.enter()
            def begin(self): born.put(os.environ["MODAL_TASK_ID"], partition="warm")
            @modal.method()
            def work(self): return os.environ["MODAL_TASK_ID"]

        @app.cls(buffer_containers=1, max_containers=3)
        class Buffered:
            @modal.enter()
            def begin(self): born.put(os.environ["MODAL_TASK_ID"])
            @modal.method()
            def hold(self): return [born.get(timeout=20), go.get(timeout=20)]

        @app.cls(min_containers=1)
        class Needs:
            size: int = modal.parameter()
            @modal.enter()
            def begin(self): born.put(self.size, partition="needs")
            @modal.method()
            def work(self): return self.size

        @app.function(max_containers=2)
        def capped(x):
            time.sleep(0.05)
            return os.environ["MODAL_TASK_ID"]

        @app.function()
        def free(x):
            time.sleep(0.05)
            return os.environ["MODAL_TASK_ID"]

        @app.local_entrypoint()
        def main():
            warm = {born.get(timeout=20, partition="warm") for _ in range(2)}
            served = Warm().work.remote() in warm
            call = Buffered().hold.spawn()
            other = born.get(timeout=20)  # the one that holds the call took the first
            go.put(1)
            one, _ = call.get(timeout=20)
            report({"warm": [len(warm), served], "buffered": one != other, "capped": len(set(capped.map(range(20)))),
                    "free": len(set(free.map(range(40)))) > 1, "needs": [born.len(partition="needs"),
                    Needs(size=4).work.remote()]})
    """)
    peaks = {pool["function"]: pool["peak"] for pool in engine.status()["pools"]}
    assert found == {"warm": [2, True], "buffered": True, "capped": 2, "free": True, "needs": [0, 4]}
    assert peaks == {}, "the pools of an app that has ended are gone"


def test_settings_change_while_a_function_runs_down_to_nothing_and_back(engine, run_app):
    found = run_app("""
        import modal, os, time, warnings
        app = modal.App("settings")
        born = modal.Queue.from_name("born2", create_if_missing=True)
        left = modal.Queue.from_name("left2", create_if_missing=True)

        @app.cls(min_containers=1, max_containers=1, scaledown_window=2)
        class Grows:
            @modal.enter()
            def begin(self): born.put(1)
            @modal.method()
            def work(self, x):
                time.sleep(0.1)
                return os.environ["MODAL_TASK_ID"]
            @modal.exit()
            def end(self): left.put(1)

        @app.function(scaledown_window=9, max_containers=3)
        def plain(): pass

        @app.local_entrypoint()
        def main():
            grows = Grows()
            born.get(timeout=20)
            grows.update_autoscaler(min_containers=0)
            left.get(timeout=20)
            grows.update_autoscaler(min_containers=2, max_containers=2)
            found = {"back": [born.get(timeout=20), born.get(timeout=20)],
                     "two": len(set(grows.work.map(range(12))))}
            before = plain.autoscaler.settings()
            after = plain.autoscaler.update(min_containers=0, max_containers=None, scaledown_window=5)
            found["read"] = [before.max_containers, before.scaledown_window]
            found["changed"] = [after.min_containers, after.max_containers, after.scaledown_window]
            report(found)
    """)
    assert found == {"back": [1, 1], "two": 2, "read": [3, 9], "changed": [0, None, 5]}


def test_no_container_is_left_when_its_app_has_ended(engine, run_app):
    run_app("""
        import modal
        app = modal.App("leftovers")
        @app.function(min_containers=2)
        def f(): return 1
        @app.local_entrypoint()
        def main(): report(f.remote())
    """)
    children = [one for one in psutil.Process().children(recursive=True) if is_container(one)]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert engine.status()["containers"] == 0


def is_container(process: psutil.Process) -> bool:
    try:
        return "_container_entrypoint" in " ".join(process.cmdline()) or "MODAL_TASK_ID" in process.environ()
    except psutil.Error:
        return False
