def test_calls_of_every_form_return_their_values(run_app):
    found = run_app("""
        import modal
        app = modal.App("forms")

        @app.function()
        def square(x): return x * x

        @app.function()
        def add(x, y): return x + y

        @app.function()
        async def slow_square(x): return x * x

        @app.function()
        def count(n):
            for i in range(n): yield i

        @app.function()
        async def acount(n):
            for i in range(n): yield i

        @app.function()
        def outer(x): return square.remote(x) + 1

        @app.local_entrypoint()
        async def main():
            call = await square.spawn.aio(9)
            report({
                "remote": await square.remote.aio(3),
                "async": await slow_square.remote.aio(4),
                "map": [x async for x in square.map.aio(range(30))],
                "unordered": sorted([x async for x in square.map.aio(range(30), order_outputs=False)]),
                "starmap": [x async for x in add.starmap.aio([(1, 2), (3, 4)])],
                "gen": [x async for x in count.remote_gen.aio(5)],
                "agen": [x async for x in acount.remote_gen.aio(5)],
                "spawn": await call.get.aio(),
                "nested": await outer.remote.aio(5),
                "large": len(await add.remote.aio(b"x" * 20_000_000, b"y")),
            })
    """)

    squares = [x * x for x in range(30)]
    assert found == {
        "remote": 9,
        "async": 16,
        "map": squares,
        "unordered": squares,
        "starmap": [3, 7],
        "gen": [0, 1, 2, 3, 4],
        "agen": [0, 1, 2, 3, 4],
        "spawn": 81,
        "nested": 26,
        "large": 20_000_001,
    }


def test_exceptions_come_back_with_their_type_and_failed_inputs_are_retried(run_app):
    found = run_app("""
        import modal
        app = modal.App("failures")
        attempts = modal.Dict.from_name("attempts", create_if_missing=True)

        @app.function()
        def fail(x):
            if x == 2: raise KeyError("two")
            return x

        @app.function(retries=modal.Retries(max_retries=3, initial_delay=0.0, backoff_coefficient=1.0))
        def third_time_lucky():
            n = attempts.get("n", 0) + 1
            attempts["n"] = n
            if n < 3: raise ValueError(n)
            return n

        @app.function(timeout=1)
        def too_long():
            import threading
            threading.Event().wait(60)

        @app.function()
        def dies():
            import os
            os._exit(7)

        @app.local_entrypoint()
        def main():
            found = {"mixed": [type(x).__name__ if isinstance(x, Exception) else x
                               for x in fail.map(range(4), return_exceptions=True, wrap_returned_exceptions=False)]}
            try: fail.remote(2)
            except KeyError as error: found["type"] = str(error)
            found["retried"] = third_time_lucky.remote()
            try: too_long.remote()
            except modal.exception.FunctionTimeoutError: found["timeout"] = True
            try: dies.remote()
            except modal.exception.RemoteError as error: found["died"] = "exited with code 7" in str(error)
            report(found)
    """)

    assert found == {"mixed": [0, 1, "KeyError", 3], "type": "'two'", "retried": 3, "timeout": True, "died": True}


def test_a_cancelled_call_ends_and_its_container_serves_on(run_app):
    found = run_app("""
        import modal
        app = modal.App("cancelling")
        started = modal.Queue.from_name("started", create_if_missing=True)

        @app.function(max_containers=1)
        def work(wait):
            import os, threading
            if wait:
                started.put(1)
                threading.Event().wait(60)
            return os.getpid()

        @app.local_entrypoint()
        def main():
            before = work.remote(False)
            call = work.spawn(True)
            started.get()
            call.cancel()
            try: call.get(timeout=20)
            except Exception as error: name = type(error).__name__
            report({"same": work.remote(False) == before, "ended": name != "TimeoutError"})
    """)

    assert found == {"same": True, "ended": True}


def test_what_the_image_does_not_bring_cannot_be_imported(run_app):
    found = run_app("""
        import modal
        app = modal.App("guard")
        from importlib.metadata import version
        image = modal.Image.debian_slim().pip_install(f"httpx=={version('httpx')}").env({"COLOUR": "blue"})

        @app.function(image=image)
        def look():
            import os
            import httpx
            try: import hypothesis
            except ModuleNotFoundError as error: return os.environ["COLOUR"], str(error)

        @app.local_entrypoint()
        def main(): report(look.remote())
    """)

    assert found == ["blue", "No module named 'hypothesis'"]
