"""Classes: their parameters, what runs around their inputs, and how inputs share a container."""

WHAT = """
def what(call):
    try: return call()
    except BaseException as error: return [type(error).__name__, str(error)]
"""


def test_hooks_run_once_a_container_in_order_and_on_every_graceful_end(run_app, modal_cli):
    found = run_app("""
        import modal, os
        from modal.runner import deploy_app
        app = modal.App("hooks")
        heard = modal.Queue.from_name("heard", create_if_missing=True)

        @app.cls(max_containers=1, scaledown_window=2, enable_memory_snapshot=True)
        class Model:
            @modal.enter(snap=True)
            def snapped(self): self.steps = ["snap"]
            @modal.enter()
            def then(self): self.steps.append("enter")
            @modal.enter()
            async def zuletzt(self): self.steps.append("async enter")

            @modal.method()
            def call(self, x): return x, self.steps
            @modal.method()
            async def also(self): return self.steps
            @modal.method()
            def count(self, n): yield from range(n)
            @modal.method()
            def leave(self): modal.experimental.stop_fetching_inputs()

            @modal.exit()
            def first(self): heard.put("first")
            @modal.exit()
            async def second(self): await heard.put.aio("second")

        @app.cls()
        class Bad:
            @modal.method()
            def call(self): return "fine"
            @modal.exit()
            def fail(self):
                heard.put("failing")
                raise ValueError("a failing exit hook")

        def leaving(): return [heard.get(timeout=20), heard.get(timeout=20)]

        @app.local_entrypoint()
        def main():
            import modal.experimental
            model = Model()
            found = {"calls": [list(one) for one in model.call.map(range(3))], "also": model.also.remote(),
                     "generator": list(model.count.remote_gen(3)), "idle": leaving(), "again": model.also.remote()}
            model.leave.remote()
            found["stopped itself"] = leaving()
            found["and again"] = model.also.remote()
            found["bad"] = Bad().call.remote()
            report(found)
    """)
    steps = ["snap", "enter", "async enter"]
    assert found == {
        "calls": [[x, steps] for x in range(3)],
        "also": steps,
        "generator": [0, 1, 2],
        "idle": ["first", "second"],
        "again": steps,
        "stopped itself": ["first", "second"],
        "and again": steps,
        "bad": "fine",
    }
    # the run has ended, and its containers with it
    assert sorted(modal_cli("queue", "peek", "heard", "9").stdout.split()) == ["failing", "first", "second"]


def test_a_failing_enter_hook_tells_whoever_waits_and_starts_back_off(run_app):
    found = run_app(
        WHAT
        + """
import modal, time
app = modal.App("enters")
runs = modal.Queue.from_name("enters", create_if_missing=True)
once = modal.Dict.from_name("once", create_if_missing=True)

@app.cls(max_containers=2)
class Fails:
    @modal.enter()
    def load(self):
        runs.put(1)
        raise LookupError("no weights")
    @modal.method()
    def call(self, x): return x

@app.cls(max_containers=2)
class Second:
    @modal.enter()
    def load(self):
        if not once.put("loaded", True, skip_if_exists=True): raise LookupError("only one may load")
    @modal.method()
    def call(self, x):
        time.sleep(0.3)
        return x

@app.local_entrypoint()
def main():
    found = {"map": [type(one).__name__ for one in Fails().call.map(range(3), return_exceptions=True)]}
    began = time.monotonic()
    found["each"] = [what(lambda: Fails().call.remote(1)) for _ in range(2)]
    found["waited"] = time.monotonic() - began
    found["starts"] = runs.len()
    found["served"] = [x for x in Second().call.map(range(4))]
    report(found)
"""
    )
    assert found["map"] == ["LookupError"] * 3
    assert found["each"] == [["LookupError", "no weights"]] * 2
    assert found["waited"] > 0.35, "starts that fail do not back off"
    assert found["starts"] <= 2 + 2
    assert found["served"] == [0, 1, 2, 3], "a start that failed beside a container that serves ended its calls"


def test_each_set_of_parameters_has_its_own_containers_and_defaults_are_the_base(run_app):
    found = run_app(
        WHAT
        + """
import modal, os
app = modal.App("parameters")

@app.cls()
class Typed:
    s: str = modal.parameter()
    i: int = modal.parameter(default=3)
    b: bytes = modal.parameter(default=b"raw")
    t: bool = modal.parameter(default=True)
    @modal.method()
    def all(self): return [self.s, self.i, list(self.b), self.t, os.environ["MODAL_TASK_ID"]]

@app.cls(max_containers=1, env={"A": "1"})
class Defaults:
    i: int = modal.parameter(default=3)
    s: str = modal.parameter(default="x")
    @modal.method()
    def where(self): return [self.i, os.environ.get("A"), os.environ.get("B"), os.environ["MODAL_TASK_ID"]]

@app.local_entrypoint()
def main():
    values = [Typed(s="a"), Typed(s="a", i=3), Typed(i=4, s="a"), Typed(s="a", i=4), Typed(s="é", b=b"\\0", t=False)]
    report({
        "typed": [one.all.remote() for one in values],
        "missing": what(lambda: Typed().all.remote()), "wrong": what(lambda: Typed(s=1).all.remote()),
        "defaults": [one.where.remote() for one in (Defaults(), Defaults(i=3), Defaults(s="x", i=3), Defaults(i=4))],
        "options": [Defaults.with_options(env={"B": "2"})(i=5).where.remote(),
                    Defaults.with_options(max_containers=2)().where.remote(),
                    Defaults.with_options(max_containers=2)(s="x").where.remote()],
    })
"""
    )
    typed = found["typed"]
    assert [one[:4] for one in typed] == [
        ["a", 3, [114, 97, 119], True],
        ["a", 3, [114, 97, 119], True],
        ["a", 4, [114, 97, 119], True],
        ["a", 4, [114, 97, 119], True],
        ["é", 3, [0], False],
    ]
    assert [typed[0][4] == typed[1][4], typed[2][4] == typed[3][4], len({one[4] for one in typed})] == [True, True, 3]
    assert found["missing"] == ["InvalidError", "Missing required parameter: s"]
    assert found["wrong"] == ["TypeError", "Expected str, got int"]
    defaults = found["defaults"]
    assert [one[:3] for one in defaults] == [[3, "1", None]] * 3 + [[4, "1", None]]
    assert len({one[3] for one in defaults[:3]}) == 1, "parameters with their defaults ran in a pool of their own"
    (with_env, fresh, same) = found["options"]
    assert with_env[:3] == [5, None, "2"]
    assert fresh[3] == same[3] != defaults[0][3]


def test_inputs_share_a_container_up_to_its_limits_and_batches_fill_up_in_time(run_app):
    found = run_app(
        WHAT
        + """
import asyncio, modal, os, time
app = modal.App("together")

class Crowd:
    now = peak = 0
    async def join(self, stay_s=0.2):
        self.now += 1
        self.peak = max(self.peak, self.now)
        await asyncio.sleep(stay_s)
        self.now -= 1
        return [self.peak, os.environ["MODAL_TASK_ID"]]
crowd = Crowd()

@app.function(max_containers=1)
@modal.concurrent(max_inputs=5)
async def meet(x): return await crowd.join()

@app.function(max_containers=1)
@modal.concurrent(max_inputs=6, target_inputs=2)
async def press(x): return await crowd.join()

@app.function(max_containers=4)
@modal.concurrent(max_inputs=10, target_inputs=2)
async def spread(x): return await crowd.join(2)  # long enough for a third container on a busy machine

@app.function()
async def alone(x): return await crowd.join()

@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=400)
def batch(xs: list[int]) -> list[int]:
    if 99 in xs: raise ValueError("poison")
    return [1] if 98 in xs else [len(xs)] * len(xs)

@app.function(max_containers=1)
def lists(xs): return [len(xs)] * len(xs)

@app.function(single_use_containers=True, max_containers=2)
def once(x): return os.environ["MODAL_TASK_ID"]

def peak(function, number):
    seen = list(function.map(range(number)))
    return [max(one[0] for one in seen), len({one[1] for one in seen})]

@app.local_entrypoint()
def main():
    found = {"meet": peak(meet, 15), "press": peak(press, 40), "alone": peak(alone, 3)[0],
             "with": peak(alone.with_concurrency(max_inputs=3).with_options(max_containers=2), 12)}
    found["spread"] = peak(spread, 6)[1]
    found["batches"] = sorted(batch.map(range(10)))
    began = time.monotonic()
    found["one"] = [batch.remote(1), 0.35 < time.monotonic() - began < 5]
    found["errors"] = [str(one) for one in batch.map([1, 99], return_exceptions=True)]
    found["short"] = [str(one) for one in batch.map([1, 98], return_exceptions=True)]
    found["with_batching"] = sorted(lists.with_batching(max_batch_size=3, wait_ms=400).map(range(6)))
    found["once"] = len(set(once.map(range(4))))
    report(found)
"""
    )
    short = "Output of batched function batch must be a list of equal length as its inputs."
    assert found == {
        "meet": [5, 1],
        "press": [6, 1],  # crowded and capped: modal lets it rise above its target
        "alone": 1,
        "with": [3, 2],
        "spread": 3,
        "batches": [2, 2] + [4] * 8,
        "one": [1, True],
        "errors": ["poison"] * 2,
        "short": [short] * 2,
        "with_batching": [3] * 6,
        "once": 4,
    }
