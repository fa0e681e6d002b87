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
