"""A class in a notebook's cell, in a real kernel: run on an engine, edited and run again, debugged in place."""

import queue
import sys

import pytest
from jupyter_client.manager import KernelManager

pytestmark = pytest.mark.heavy  # a kernel, an engine and its containers
LIMIT_S = 60


class Notebook:
    """Runs cells, and answers what a debugger asks for."""

    def __init__(self, kernel):
        self.client = kernel.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT_S)

    def cell(self, source, *answers):
        """What the cell printed, and the value of its last line; *answers* are typed where it asks."""
        asked = self.client.execute(source, allow_stdin=bool(answers))
        typed, text = list(answers), ""
        while True:
            message = self.heard()
            if message["parent_header"].get("msg_id") != asked:
                continue  # of a cell that failed before
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "stream":
                text += content["text"]
            elif kind == "execute_result":
                text += content["data"]["text/plain"]
            elif kind == "error":
                pytest.fail("\n".join([text, *content["traceback"]]))
            elif kind == "input_request":
                self.client.input(typed.pop(0))
            elif kind == "status" and content["execution_state"] == "idle":
                return text

    def heard(self):
        for _ in range(LIMIT_S * 20):
            for channel in (self.client.stdin_channel, self.client.iopub_channel):
                try:
                    return channel.get_msg(timeout=0.05)
                except queue.Empty:
                    continue
        return pytest.fail("the kernel says nothing more")


@pytest.fixture(scope="module")
def notebook():
    manager = KernelManager()
    manager.start_kernel()
    try:
        yield Notebook(manager)
    finally:
        manager.shutdown_kernel(now=True)


def doubler(factor):
    return f"""
@gpuserve.register(app)
class Scaler(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian("{sys.version_info.major}.{sys.version_info.minor}")

    def load(self) -> None:
        self.factor = {factor}

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return [self.factor * number for number in batch]

    @gpuserve.streaming
    def count(self, item: int):
        yield from range(item)
"""


CALLS = """
with engine.connected(), app.run():
    print(Scaler().predict.remote(21), list(Scaler().predict.map([1, 2, 3], chunk=2)),
          list(Scaler().count.remote_gen(3)))
"""
ASYNC_CALLS = """
with engine.connected():
    async with app.run():
        found = [await Scaler().predict.remote.aio(21)]
        async for answer in Scaler().predict.map.aio([1, 2]):
            found.append(answer)
        print(found)
"""


def test_a_class_in_a_cell_runs_on_an_engine_and_again_after_it_was_edited(notebook):
    notebook.cell("import gpuserve, modal\nfrom gpuserve.engine import LocalEngine\nengine = LocalEngine().start()")
    try:
        notebook.cell("app = modal.App('cells')" + doubler(2))
        assert "42 [2, 4, 6] [0, 1, 2]" in notebook.cell(CALLS)
        assert "[42, 2, 4]" in notebook.cell(ASYNC_CALLS)
        notebook.cell(doubler(3))
        assert "63 [3, 6, 9] [0, 1, 2]" in notebook.cell(CALLS)
        assert "[63, 3, 6]" in notebook.cell(ASYNC_CALLS)
    finally:
        notebook.cell("engine.close()")


LOCAL = """
import gpuserve
class Local(gpuserve.WarmModelServer):
    def load(self): self.factor = 5

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        if 7 in batch:
            import pdb; pdb.set_trace()  # breakpoint() is the front end's own debugger here
        return [self.factor * number for number in batch]

    @gpuserve.streaming
    def count(self, item: int):
        yield from range(item)
"""


def test_a_server_runs_inside_the_kernel_by_calls_and_by_await(notebook):
    notebook.cell(LOCAL)
    assert "[5, 10] [0, 1]" in notebook.cell("""
with Local.local() as server:
    print(list(server.predict.map([1, 2])), list(server.count.remote_gen(2)))
""")
    assert "15 [20] [0, 1]" in notebook.cell("""
with Local.local() as server:
    one = await server.predict.remote.aio(3)
    print(one, [answer async for answer in server.predict.map.aio([4])],
          [piece async for piece in server.count.remote_gen.aio(2)])
""")


def test_pdb_stops_where_the_model_runs(notebook):
    notebook.cell(LOCAL)
    said = notebook.cell(
        "with Local.local() as server:\n    print('answer', server.predict.remote(7))",
        "p batch, self.factor", "self.factor = 6", "c",
    )  # fmt: skip
    assert "([7], 5)" in said
    assert "answer 42" in said
