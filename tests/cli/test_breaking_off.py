"""Ctrl-C, SIGTERM and SIGKILL: exit hooks run, and nothing is left running."""

import os
import re
import signal
import time
import urllib.error
import urllib.request

import pytest

pytestmark = pytest.mark.wide

SLOW = """
import time
import modal

app = modal.App("slow")

@app.cls()
class Slow:
    @modal.method()
    def wait(self):
        print("it runs", flush=True)
        time.sleep(600)

    @modal.exit()
    def leave(self):
        open(MARK, "w").write("left")

@app.local_entrypoint()
def main():
    Slow().wait.remote()
"""
WEB = """
import modal

app = modal.App("web")

@app.function()
@modal.asgi_app()
def page():
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first"})
    return answer
"""
SERVER = """
import modal, gpuserve

app = modal.App("served")

@gpuserve.register(app)
class Echo(gpuserve.WarmModelServer):
    image = gpuserve.ImageSpec.debian()
    http = gpuserve.Http(keys=gpuserve.SecretSpec(name="serve-keys"))

    @gpuserve.batched
    def predict(self, batch: list[str]) -> list[str]:
        return batch
"""
KEY = "0123456789abcdef0123456789"


def read_until(process, word):
    """Read what a command prints until *word* is in it."""
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(word, seen):
            return seen
    raise AssertionError(seen)


def start_slow(cli):
    mark = cli.folder / "mark"
    cli.write("slow.py", SLOW.replace("MARK", repr(str(mark))))
    process = cli.start("local", "run", "slow.py")
    read_until(process, "it runs")
    return process, mark


def end(process):
    code = process.wait(60)
    process.stdout.close()
    return code


def interrupt_group(process):
    """What a terminal does for Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_breaking_off_runs_exit_hooks_and_leaves_no_process(how, cli):
    process, mark = start_slow(cli)

    if how == "Ctrl-C":
        interrupt_group(process)
    else:
        process.terminate()

    assert end(process) == 130
    assert mark.read_text() == "left"
    assert cli.processes() == []
    assert cli.json("local", "status")["up"] is False


def test_a_killed_command_leaves_no_engine_and_no_container(cli, until):
    process, mark = start_slow(cli)

    process.kill()

    assert end(process) == -signal.SIGKILL
    until(lambda: cli.processes() == [])
    assert mark.read_text() == "left"
    cli.write_app()
    assert "doubled 42" in cli("local", "run", "kept.py").stdout


def test_breaking_off_leaves_the_engine_that_was_up_and_what_others_run(new_cli):
    cli = new_cli()
    pid = cli.json("local", "up")["pid"]
    first, _mark = start_slow(cli)
    second, _mark = start_slow(cli)

    interrupt_group(first)

    assert end(first) == 130
    facts = cli.json("local", "status")
    assert facts["pid"] == pid
    assert [app["name"] for app in facts["apps"]] == ["slow"]
    interrupt_group(second)
    assert end(second) == 130
    assert cli.json("local", "status")["containers"] == 0


def test_a_command_that_joined_goes_on_when_the_one_that_started_the_engine_is_broken_off(cli):
    first, _mark = start_slow(cli)
    second, _mark = start_slow(cli)

    interrupt_group(first)

    assert end(first) == 130
    assert second.poll() is None
    assert cli.json("local", "status")["holders"] == 1
    interrupt_group(second)
    assert end(second) == 130
    assert cli.processes() == []


@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.heavy)])
def test_commands_started_at_once_share_one_engine_and_all_succeed(count, cli):
    cli.write_app()
    running = [cli.start("local", "run", "kept.py") for _ in range(count)]

    said = [process.communicate(timeout=100)[0] for process in running]

    assert [process.returncode for process in running] == [0] * count, said
    assert all("doubled 42" in text for text in said)
    assert cli.processes() == []


@pytest.mark.heavy
def test_two_hundred_interrupts_leave_no_orphan(new_cli):
    for _ in range(200):
        cli = new_cli()
        process, mark = start_slow(cli)
        interrupt_group(process)
        assert end(process) == 130
        assert mark.read_text() == "left"
        assert cli.processes() == []


def test_serve_answers_with_the_new_code_at_the_same_address(cli, until):
    cli.write("web.py", WEB)
    process = cli.start("local", "serve", "web.py")
    url = re.search(r"http://127\.0\.0\.1:\d+", read_until(process, r"http://127\.0\.0\.1:\d+")).group()

    def page():
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read()

    def page_of_the_new_code():
        cli.write("web.py", WEB.replace("first", "second"))  # again: a change before modal watches the file is not seen
        changed = time.monotonic()
        while time.monotonic() < changed + 5:
            if page() == b"second":
                return True
        return False

    assert page() == b"first"
    until(page_of_the_new_code)

    interrupt_group(process)
    assert end(process) == 130
    assert cli.processes() == []


def test_serve_gives_a_server_a_page_to_try_it_from_and_its_methods_ask_for_the_key(cli):
    cli("local", "up")
    cli("local", "secret", "create", "serve-keys", f"GPUSERVE_API_KEYS=ci:{KEY}")
    cli.write("served.py", SERVER)
    process = cli.start("local", "serve", "served.py")
    said = read_until(process, r"http://127\.0\.0\.1:\d+")
    url = re.search(r"http://127\.0\.0\.1:\d+", said).group()

    with urllib.request.urlopen(f"{url}/try", timeout=60) as answer:
        page = answer.read().decode()
    assert "openapi.json" in page  # with the key, the page lists the methods from it
    assert KEY not in page
    asked = urllib.request.Request(f"{url}/predict", b'{"input": "a"}', {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(asked, timeout=60)
    asked.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert b'"a"' in answer.read()

    interrupt_group(process)
    assert end(process) == 130
