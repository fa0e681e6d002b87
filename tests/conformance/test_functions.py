"""Functions, called in every way that the client has, and what their containers saw of it."""

import time


def test_calls_of_every_form_return_their_values(run_app):
    found = run_app("""
        import asyncio, modal
        app = modal.App("forms")
        seen = modal.Queue.from_name("seen", create_if_missing=True)

        @app.function()
        def square(x): return x * x

        @app.function()
        def add(x, y=0): return x + y

        @app.function()
        async def slow_square(x): return x * x

        @app.function()
        def count(n):
            for i in range(n): yield i

        @app.function()
        async def acount(n):
            for i in range(n): yield i

        @app.function()
        def endless():
            import itertools, time
            for i in itertools.count():
                yield i
                time.sleep(0.01)

        @app.function()
        def tell(x): seen.put(x)

        @app.function(serialized=True, name="sealed")
        def sealed(x): return ["sealed", x]

        def refused(call, *arguments):
            try: return call(*arguments)
            except Exception as error: return type(error).__name__

        def heard(n): return sorted(seen.get(timeout=20) for _ in range(n))

        @app.local_entrypoint()
        def main():
            found = {"remote": square.remote(3), "async": slow_square.remote(4), "keywords": add.remote(x=1, y=2)}
            found["map"] = list(square.map(range(30)))
            found["unordered"] = sorted(square.map((x for x in range(30)), order_outputs=False))
            found["starmap"] = list(add.starmap([(1, 2), (3, 4)]))
            found["zipped"] = list(add.map([1, 2], [3, 4])) + list(add.map([1, 2], kwargs={"y": 10}))
            found["gen"], found["agen"] = list(count.remote_gen(5)), list(acount.remote_gen(5))
            values = endless.remote_gen()
            found["early"] = [next(values), next(values)]
            values.close()
            tell.for_each([1, 2, 3])
            found["for_each"] = heard(3)
            tell.spawn_map([4, 5])
            found["spawn_map"] = heard(2)
            many = square.experimental_spawn_map([1, 2, 3])
            found["outputs"] = [list(many.iter()), list(many.iter(start=1, end=2)), many.get(index=2)]
            found["inputs"] = many.num_inputs()
            call = square.spawn(9)
            again = modal.FunctionCall.from_id(call.object_id)
            found["spawn"] = [call.get(), call.get(), again.get(timeout=5)]
            found["gather"] = modal.FunctionCall.gather(square.spawn(1), square.spawn(2))
            found["sealed"] = sealed.remote(1)
            found["lock"] = refused(square.remote, __import__("threading").Lock())
            found["arity"] = refused(square.remote, 1, 2)
            found["spawned generator"] = refused(count.spawn, 1)
            found["aio"] = asyncio.run(in_a_loop())
            report(found)

        async def in_a_loop():
            call = await square.spawn.aio(9)
            return [await square.remote.aio(3), [x async for x in square.map.aio(range(3))],
                    [x async for x in add.starmap.aio([(1, 2)])], [x async for x in acount.remote_gen.aio(2)],
                    await call.get.aio()]
    """)

    squares = [x * x for x in range(30)]
    assert found == {
        "remote": 9,
        "async": 16,
        "keywords": 3,
        "map": squares,
        "unordered": squares,
        "starmap": [3, 7],
        "zipped": [4, 6, 11, 12],
        "gen": [0, 1, 2, 3, 4],
        "agen": [0, 1, 2, 3, 4],
        "early": [0, 1],
        "for_each": [1, 2, 3],
        "spawn_map": [4, 5],
        "outputs": [[1, 4, 9], [4], 9],
        "inputs": 3,
        "spawn": [81, 81, 81],
        "gather": [1, 4],
        "sealed": ["sealed", 1],
        "lock": "TypeError",
        "arity": "TypeError",
        "spawned generator": "InvalidError",
        "aio": [9, [0, 1, 4], [3], [0, 1], 81],
    }


def test_functions_call_functions_and_know_where_they_are(run_app):
    found = run_app("""
        import modal, os
        app = modal.App("nested")
        gate = modal.Queue.from_name("gate", create_if_missing=True)

        @app.function()
        def square(x): return x * x

        @app.function()
        def parent(x): return square.remote(x) + sum(square.map([1, 2])) + sum(square.spawn(y).get() for y in (3, 4))

        @app.function()
        def deep(n): return 0 if n == 0 else 1 + deep.remote(n - 1)

        @app.function()
        def wide(n): return 1 if n == 0 else sum(wide.map([n - 1, n - 1]))

        @app.function()
        def meet(x):
            gate.put(x, partition="met")
            return gate.get(partition="all here", timeout=30)

        @app.function()
        def where():
            here = [modal.current_input_id(), modal.current_function_call_id(), modal.is_local()]
            gate.get(timeout=20)
            return here

        def tree(node): return [node.function_name, int(node.status), sorted(tree(child) for child in node.children)]

        @app.local_entrypoint()
        def main():
            meeting = meet.experimental_spawn_map(range(6))  # more than this machine runs at a time
            met = sorted(gate.get(partition="met", timeout=30) for _ in range(6))
            gate.put_many([1] * 6, partition="all here")
            call = parent.spawn(5)
            value = call.get()
            one = where.spawn()
            try: waited = one.get(timeout=0)
            except TimeoutError: waited = "not yet"
            gate.put(1)
            input_id, call_id, is_local = one.get()
            ids = [call_id == one.object_id, input_id == one.get_call_graph()[0].input_id, is_local]
            outside = [modal.is_local(), modal.current_input_id(), modal.current_function_call_id()]
            report({"value": value, "graph": [tree(node) for node in call.get_call_graph()], "waited": waited,
                    "ids": ids, "outside": outside, "deep": deep.remote(10),
                    "met": [met, sum(meeting.iter())], "wide": wide.remote(2)})
    """)

    assert found == {
        "value": 25 + 5 + 25,
        "graph": [["parent", 1, [["square", 1, []]] * 5]],
        "waited": "not yet",
        "ids": [True, True, False],
        "outside": [True, None, None],
        "deep": 10,
        "met": [[0, 1, 2, 3, 4, 5], 6],
        "wide": 4,
    }


def test_large_values_go_both_ways_and_leave_nothing_behind(engine, run_app, monkeypatch):
    monkeypatch.setattr("gpuserve.engine.services.calls._READ_CALL_LIFE_S", 0.0)
    monkeypatch.setattr("gpuserve.engine.services.calls._BLOB_LIFE_S", 2.0)
    found = run_app("""
        import hashlib, modal
        app = modal.App("large")

        @app.function()
        def reverse(data): return data[::-1]

        @app.function()
        def pieces(data, n):
            for _ in range(n): yield data

        @app.function()
        def fail(data): raise ValueError(data)

        def digest(data): return hashlib.sha256(data).hexdigest()

        @app.local_entrypoint()
        def main():
            found = []
            for size in (3, 40):  # MB: in the RPC, and past its 16 MiB
                data = bytes(range(250)) * (4000 * size)
                found.append(digest(reverse.remote(data)) == digest(data[::-1]))
            found.append(digest(reverse.spawn(data[:2_000_000]).get()) == digest(data[:2_000_000][::-1]))
            found.append([len(one) for one in pieces.remote_gen(b"x" * 17_000_000, 2)])
            try: fail.remote("e" * 3_000_000)
            except ValueError as error: found.append(len(str(error)))
            report(found)
    """)

    assert found == [True, True, True, [17_000_000, 17_000_000], 3_000_000]
    spawned = {blob for call in engine.core.calls.calls.values() for blob in call.blobs}
    deadline = time.monotonic() + 20
    while kept := {path.name for path in (engine.home / "blobs").iterdir()} - spawned:
        assert time.monotonic() < deadline, f"nobody will ask for {kept} again"
    assert len(spawned) == 2, "a spawned call may still be asked for its value"


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
