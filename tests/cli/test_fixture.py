"""The fixture `local_engine` in a project of a user: each test on an engine of its own, and no warning."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.wide

APP = """
import os
import modal

app = modal.App("shop", image=modal.Image.debian_slim().env({"COLOUR": "blue"}))
stock = modal.Dict.from_name("stock", create_if_missing=True)
orders = modal.Queue.from_name("orders", create_if_missing=True)
shelf = modal.Volume.from_name("shelf", create_if_missing=True)

@app.function(secrets=[modal.Secret.from_dict({"SIZE": "9"})], volumes={"/shelf": shelf})
def take(name: str) -> str:
    stock[name] = stock.get(name, 0) + 1
    open("/shelf/" + name, "w").write(name)
    return f"{name} {os.environ['COLOUR']} {os.environ['SIZE']}"

@app.cls()
class Counter:
    @modal.method()
    def add(self, n: int) -> int:
        return n + 1
"""
TESTS = """
import os
import pytest
from shop import Counter, app, orders, shelf, stock, take

urls = set()

@pytest.mark.parametrize("turn", range(3))
def test_objects_of_a_module_begin_empty_in_each_test(local_engine, turn):
    assert os.environ["MODAL_SERVER_URL"] not in urls
    urls.add(os.environ["MODAL_SERVER_URL"])
    assert stock.get("shoe") is None
    assert orders.len() == 0
    assert shelf.listdir("/") == []
    orders.put(turn)
    with app.run():
        assert take.remote("shoe") == "shoe blue 9"
        assert Counter().add.remote(turn) == turn + 1
    assert stock["shoe"] == 1
    assert [entry.path for entry in shelf.listdir("/")] == ["shoe"]
    status = local_engine.status()
    assert [app["name"] for app in status["apps"]] == []

async def lookup():
    await stock.put.aio("sock", 2)
    return await stock.get.aio("sock")

def test_the_async_face_talks_to_the_same_engine(local_engine):
    import asyncio
    assert asyncio.run(lookup()) == 2
    assert stock["sock"] == 2

def test_a_failing_test_leaves_the_next_one_alone(local_engine):
    stock["sock"] = 1
    with app.run():
        raise ValueError("meant to fail")

def test_after_it(local_engine):
    assert "sock" not in stock

def test_without_the_fixture_nothing_points_to_an_engine():
    assert os.environ["MODAL_SERVER_URL"] == "http://of-the-user"
    assert os.environ["MODAL_ENVIRONMENT"] == "production"
"""


def test_tests_of_a_users_project_are_kept_apart_and_warn_of_nothing(tmp_path):
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    users = {"MODAL_SERVER_URL": "http://of-the-user", "MODAL_ENVIRONMENT": "production", "MODAL_OAUTH_CLIENT_ID": "x"}

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "-q", "--import-mode=prepend"],
        cwd=tmp_path,
        env={**os.environ, **users},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert "1 failed, 6 passed" in done.stdout, done.stdout + done.stderr
    assert "ValueError: meant to fail" in done.stdout
    assert "warning" not in done.stdout.lower()
    assert done.stderr == ""
