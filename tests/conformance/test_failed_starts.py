"""A container that cannot be put together: those who wait are told why, once."""

import modal
import pytest

APP = """
import modal
app = modal.App("shelf")
volume = modal.Volume.from_name("books", create_if_missing=True)

@app.function(volumes={"/books": volume})
def count(): return 0
"""


def test_a_call_whose_volume_was_deleted_is_told_so_and_starts_nothing_over_and_over(engine, modal_cli, tmp_path):
    (tmp_path / "shelf.py").write_text(APP)
    modal_cli("deploy", "shelf.py")
    with engine.connected():
        modal.Volume.objects.delete("books")

        with pytest.raises(modal.exception.Error, match=r"volume vo-\w+ does not exist; it may have been deleted"):
            modal.Function.from_name("shelf", "count").remote()

    assert sum(pool["started"] for pool in engine.status()["pools"]) <= 3


def test_an_idle_thread_of_a_pool_does_not_hold_a_container_that_failed_to_start(engine, modal_cli, tmp_path):
    (tmp_path / "pools.py").write_text("""
import concurrent.futures, time
import modal
app = modal.App("pools")
ended = modal.Queue.from_name("ended", create_if_missing=True)

@app.cls(max_containers=1)
class Pooled:
    @modal.enter()
    def start(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(1)
        self.pool.submit(int).result()
        if ended.len() == 0:
            ended.put("failed")
            raise ValueError("the first start fails")
    @modal.method()
    def answer(self): return 42

@app.local_entrypoint()
def main():
    try: Pooled().answer.remote()
    except ValueError as error: print(error)
    begun = time.monotonic()
    print(Pooled().answer.remote(), time.monotonic() - begun < 15)  # its threads were given 30 s to end
""")
    said = modal_cli("run", "pools.py").stdout.splitlines()
    assert "the first start fails" in said
    assert "42 True" in said
