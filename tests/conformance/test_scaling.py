"""Containers come and go as the autoscaler's settings say, and nothing of them stays."""

import textwrap

import psutil


def test_an_idle_container_leaves_after_its_window_and_runs_its_exit_hook(engine, run_app):
    found = run_app("""
        import modal, os
        app = modal.App("idle")
        left = modal.Queue.from_name("left", create_if_missing=True)

        @app.cls(scaledown_window=2)
        class Idle:
            @modal.enter()
            def begin(self): self.pid = os.getpid()
            @modal.method()
            def pid_of(self): return self.pid
            @modal.exit()
            def end(self): left.put(self.pid)

        @app.local_entrypoint()
        def main():
            first = Idle().pid_of.remote()
            gone = left.get(timeout=20)
            report([first == gone, Idle().pid_of.remote() != first])
    """)
    assert found == [True, True]


def test_minimum_and_buffer_containers_stand_ready(run_app):
    found = run_app("""
        import modal, os
        app = modal.App("ready")
        born = modal.Queue.from_name("born", create_if_missing=True)

        @app.cls(min_containers=2)
        class Warm:
            @modal.enter()
            def begin(self): born.put(os.getpid())
            @modal.method()
            def work(self): return os.getpid()

        @app.cls(buffer_containers=1, max_containers=3)
        class Buffered:
            @modal.enter()
            def begin(self): born.put(-os.getpid())
            @modal.method()
            def hold(self): return [born.get(timeout=20), os.getpid()]

        @app.local_entrypoint()
        def main():
            warm = {born.get(timeout=20), born.get(timeout=20)}
            served = Warm().work.remote() in warm
            one, me = Buffered().hold.remote()
            other = born.get(timeout=20)
            report([len(warm), served, len({one, other}) == 2])
    """)
    assert found == [2, True, True]


def test_settings_of_a_running_function_change_while_it_runs(run_app):
    found = run_app("""
        import modal, os
        app = modal.App("settings")
        born = modal.Queue.from_name("born2", create_if_missing=True)

        @app.cls()
        class Grows:
            @modal.enter()
            def begin(self): born.put(os.getpid())
            @modal.method()
            def work(self): return 1

        @app.local_entrypoint()
        def main():
            Grows().update_autoscaler(min_containers=2)
            report(len({born.get(timeout=20), born.get(timeout=20)}))
    """)
    assert found == 2


def test_a_crash_loop_ends_with_the_last_lines_of_the_log(modal_cli, tmp_path):
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
    assert "exited with code 3" in said
    assert "the disk is made of cheese" in said


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
