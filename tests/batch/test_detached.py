"""A driver in Modal: it goes on without this process, and where it was when its container died."""

import pytest

APP = """
    import os, modal, gpuserve
    app = modal.App("lengths")
    died = modal.Dict.from_name("died", create_if_missing=True)

    @app.function(image=gpuserve.modal_image(gpuserve.ImageSpec.debian()))
    def count(batch):
        return [len(text) for text in batch]

    def texts():
        for number in range(2000):
            if number == 1500 and died.put("driver", os.getpid(), skip_if_exists=True):
                os._exit(5)
            yield "x" * (number % 50)

    @gpuserve.register_mapper(app)
    class Lengths(gpuserve.BatchMapper):
        target = count
        source = gpuserve.Items(texts, name="exes")
        output = gpuserve.Shards("runs/lengths", volume="results")
        batching = gpuserve.MapBatching(window=250, max_open=2)

    @app.local_entrypoint()
    def main():
        run = Lengths().run(detach=True)
        seen = []
        done = run.wait(80, on_status=lambda status: seen.append(status.state))
        status = Lengths().status()
        volume = modal.Volume.from_name("results")
        rows = b"".join(volume.read_file("runs/lengths/part-000007.jsonl"))
        ledger = b"".join(volume.read_file("runs/lengths/ledger/log"))
        report({"report": [done.status, done.done], "status": [status.state, status.done], "seen": sorted(set(seen)),
                "rows": rows.decode().splitlines()[:2], "died": died.len(),
                "epochs": ledger.count(b'"begin"')})
"""


@pytest.mark.heavy
def test_a_detached_run_goes_on_where_it_was_when_its_container_died(run_app):
    found = run_app(APP)

    assert found["report"] == ["finished", 2000]
    assert found["status"] == ["finished", 2000]
    assert found["died"] == 1
    assert found["epochs"] == 2
    assert found["rows"] == ['{"id":1750,"output":0}', '{"id":1751,"output":1}']
