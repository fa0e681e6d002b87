"""A cancelled call ends at once, its code is told, and whatever shares its container goes on."""


def test_a_cancelled_call_ends_and_its_container_serves_on(run_app):
    found = run_app("""
        import asyncio, modal, os, time
        app = modal.App("cancelling")
        started = modal.Queue.from_name("started", create_if_missing=True)
        told = modal.Queue.from_name("told", create_if_missing=True)

        @app.function(max_containers=1)
        def sync(wait):
            if wait:
                started.put(1)
                try: time.sleep(60)
                except BaseException as error:
                    told.put(type(error).__name__)
                    raise
            return os.environ["MODAL_TASK_ID"]

        @app.function(max_containers=1, retries=2)
        async def asynchronous(wait):
            if wait:
                await started.put.aio(1)
                try: await asyncio.sleep(60)
                except BaseException as error:
                    await told.put.aio(type(error).__name__)
                    raise
            return os.environ["MODAL_TASK_ID"]

        @app.function(max_containers=2)
        def mapped(x):
            started.put(x)
            time.sleep(60)

        def end(call):
            try: return call.get(timeout=10)
            except Exception as error: return type(error).__name__ + ": " + str(error)

        @app.local_entrypoint()
        def main():
            found = {}
            for name, function in (("sync", sync), ("async", asynchronous)):
                before = function.remote(False)
                running = function.spawn(True)
                started.get(timeout=20)
                queued = function.spawn(True)
                queued.cancel()
                running.cancel()
                found[name] = [end(running), end(queued), told.get(timeout=10), function.remote(False) == before]
                here = sync.remote(False)
            call = sync.spawn(True)
            started.get(timeout=20)
            before = sync.get_current_stats().num_total_runners
            call.cancel(terminate_containers=True)
            found["terminated"] = [end(call), before, sync.remote(False) != here, told.len()]
            many = mapped.experimental_spawn_map(range(6))
            running = [started.get(timeout=20) for _ in range(2)]
            many.cancel()
            found["many"] = [end_of(many, index) for index in range(6)]
            found["never started"] = started.len()
            report(found)

        def end_of(call, index):
            try: return call.get(timeout=10, index=index)
            except Exception as error: return type(error).__name__
    """)

    gone = "RemoteError: the call was cancelled"
    assert found == {
        "sync": [gone, gone, "InputCancellation", True],
        "async": [gone, gone, "CancelledError", True],
        "terminated": [gone, 1, True, 0],
        "many": ["RemoteError"] * 6,
        "never started": 0,
    }


def test_siblings_of_a_cancelled_input_survive(run_app, monkeypatch):
    monkeypatch.setattr("gpuserve.engine.workers.scheduler._CANCEL_GRACE_S", 1.0)
    found = run_app("""
        import asyncio, modal, os, time
        app = modal.App("siblings")
        started = modal.Queue.from_name("started2", create_if_missing=True)

        @app.function(max_containers=1)
        @modal.concurrent(max_inputs=4)
        async def tasks(x):
            await started.put.aio(x)
            await asyncio.sleep(60 if x == 0 else 0.7)
            return [x, os.environ["MODAL_TASK_ID"]]

        @app.function(max_containers=1)
        @modal.concurrent(max_inputs=4)
        def threads(x):
            started.put(x)
            time.sleep(60 if x == 0 else 0.7)
            return [x, os.environ["MODAL_TASK_ID"]]

        @app.function(max_containers=1)
        @modal.batched(max_batch_size=3, wait_ms=1000)
        def batch(xs):
            started.put(len(xs))
            time.sleep(0.5)
            return [[x, len(xs)] for x in xs]

        @app.function(max_containers=1)
        def stubborn(quick):
            if quick: return "served"
            started.put(1)
            while True:
                try: time.sleep(60)
                except BaseException: pass

        def end(call):
            try: return call.get(timeout=20)
            except Exception as error: return type(error).__name__

        def cancelled(function, number, starts):
            calls = [function.spawn(x) for x in range(number)]
            for _ in range(starts): started.get(timeout=20)
            calls[0].cancel()
            return [end(call) for call in calls]

        @app.local_entrypoint()
        def main():
            found = {"tasks": cancelled(tasks, 4, 4), "threads": cancelled(threads, 4, 4)}
            while started.len(): started.get()
            found["batch"] = cancelled(batch, 3, 1)
            call = stubborn.spawn(False)
            started.get(timeout=20)
            call.cancel()
            found["stubborn"] = [end(call), stubborn.remote(True)]
            report(found)
    """)

    (task,) = {task for _x, task in found["tasks"][1:]}
    assert found["tasks"] == ["RemoteError", [1, task], [2, task], [3, task]]
    # modal ends the whole container of threads: the others are run again in the next
    assert [one if isinstance(one, str) else one[0] for one in found["threads"]] == ["RemoteError", 1, 2, 3]
    assert found["batch"] == ["RemoteError", [1, 3], [2, 3]]
    assert found["stubborn"] == ["RemoteError", "served"]


def test_a_dead_container_with_room_for_more_takes_no_input_with_it(run_app):
    found = run_app("""
        import asyncio, modal, os, signal
        app = modal.App("room")
        started = modal.Queue.from_name("started3", create_if_missing=True)

        @app.function(max_containers=1)
        @modal.concurrent(max_inputs=10)
        async def work(x):
            if await started.len.aio() == 3: return x
            await started.put.aio(x)
            while await started.len.aio() < 3: await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        @app.local_entrypoint()
        def main(): report(list(work.map(range(3))))
    """)
    assert found == [0, 1, 2]
