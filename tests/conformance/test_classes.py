def test_a_class_loads_once_a_container_and_leaves_through_its_exit_hook(run_app):
    found = run_app("""
        import modal
        app = modal.App("lifecycle")
        seen = modal.Dict.from_name("seen", create_if_missing=True)

        @app.cls(max_containers=1, scaledown_window=2)
        class Model:
            size: int = modal.parameter(default=3)

            @modal.enter()
            def load(self): self.entered = getattr(self, "entered", 0) + 1

            @modal.method()
            def call(self, x): return self.size * x, self.entered

            @modal.exit()
            def leave(self): seen[self.size] = True

        @app.local_entrypoint()
        def main():
            import time
            model = Model()
            calls = list(model.call.map(range(20)))
            other = Model(size=5).call.remote(2)
            deadline = time.monotonic() + 30
            while seen.len() < 2 and time.monotonic() < deadline: pass
            report({"calls": [c[0] for c in calls], "entered": {c[1] for c in calls} == {1}, "other": other,
                    "left": sorted(seen.keys())})
    """)

    assert found == {"calls": [3 * x for x in range(20)], "entered": True, "other": [10, 1], "left": [3, 5]}


def test_concurrent_inputs_share_a_container_and_batched_ones_come_as_lists(run_app):
    found = run_app("""
        import modal
        app = modal.App("together")

        @app.function(max_containers=1)
        @modal.concurrent(max_inputs=5)
        async def meet(n):
            import asyncio
            state = meet_state
            state["now"] += 1
            state["peak"] = max(state["peak"], state["now"])
            await asyncio.sleep(0.2)
            state["now"] -= 1
            return state["peak"]

        meet_state = {"now": 0, "peak": 0}

        @app.function(max_containers=1)
        @modal.batched(max_batch_size=4, wait_ms=500)
        def sizes(xs: list[int]) -> list[int]: return [len(xs)] * len(xs)

        @app.local_entrypoint()
        def main(): report({"peak": max(meet.map(range(15))), "batches": sorted(sizes.map(range(8)))})
    """)

    assert found["peak"] == 5
    assert max(found["batches"]) == 4


def test_containers_stay_under_their_cap_and_their_minimum_is_kept(run_app):
    found = run_app("""
        import modal
        app = modal.App("scaling")

        @app.function(max_containers=2)
        def where(x):
            import os, threading
            threading.Event().wait(0.05)
            return os.environ["MODAL_TASK_ID"]

        @app.local_entrypoint()
        def main(): report(len(set(where.map(range(20)))))
    """)

    assert found == 2
