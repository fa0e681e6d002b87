"""Dicts, queues and secrets, from clients and containers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

CLIENT = """
import json, modal, queue, threading, time
found = {}
def error(work):
    try: return ["no error", work()]
    except Exception as raised: return type(raised).__name__

d = modal.Dict.from_name("d", create_if_missing=True)
large = b"x" * (20 << 20)
d["large"] = large
d[("a", 1)] = {"nested": [1, 2]}
d.update({"one": 1}, two=2)
found["dict"] = {
    "large": d["large"] == large, "tuple": d["a", 1], "len": d.len(), "in": ["one" in d, "no" in d],
    "get": [d.get("one"), d.get("no"), d.get("no", "else")], "missing": error(lambda: d["no"]),
    "first": d.put("lock", 1, skip_if_exists=True), "second": d.put("lock", 2, skip_if_exists=True), "lock": d["lock"],
    "pop": [d.pop("lock"), d.pop("lock", None), error(lambda: d.pop("lock"))],
    "keys": sorted(str(one) for one in d.keys()), "values": len(list(d.values())),
    "items": sorted((str(k), v) for k, v in d.items() if k != "large"),
}
d.clear()
found["dict"]["cleared"] = d.len()
winners = []
def race(name):
    if d.put("race", name, skip_if_exists=True): winners.append(name)
threads = [threading.Thread(target=race, args=(n,)) for n in range(20)]
for one in threads: one.start()
for one in threads: one.join()
found["dict"]["winners"] = len(winners)

q = modal.Queue.from_name("q", create_if_missing=True)
q.put_many([1, 2, 3]); q.put("other", partition="p")
began = time.monotonic()
found["queue"] = {
    "len": [q.len(), q.len(partition="p"), q.len(total=True)], "iterate": list(q.iterate()), "still": q.len(),
    "get": q.get(), "many": q.get_many(10), "empty": q.get(block=False), "none": q.get_many(5, block=False),
    "timed": error(lambda: q.get(timeout=0.3)), "partition": q.get(partition="p"),
}
found["queue"]["waited"] = time.monotonic() - began
threading.Timer(0.3, lambda: q.put("late")).start()
found["queue"]["late"] = q.get(timeout=20)
q.put_many(list(range(5000)), partition="full")
found["queue"]["full"] = error(lambda: q.put(1, partition="full", block=False))
found["queue"]["large"] = error(lambda: q.put(b"x" * (4 << 20), partition="large"))
q.clear(partition="full")
found["queue"]["cleared"] = [q.len(partition="full"), q.len(total=True)]
q.put("soon gone", partition="short", partition_ttl=1)
q.put("stays", partition="long", partition_ttl=3600)
until = time.monotonic() + 20
while q.len(partition="short") and time.monotonic() < until: time.sleep(0.1)
found["queue"]["ttl"] = [q.get(partition="short", block=False), q.get(partition="long", block=False)]
q.clear(all=True)

with modal.Dict.ephemeral() as e, modal.Queue.ephemeral() as f:
    e["k"] = 1; f.put(2)
    found["ephemeral"] = [e["k"], f.get(), e.object_id in {one.object_id for one in modal.Dict.objects.list()}]

for kind in (modal.Dict, modal.Queue, modal.Secret):
    more = ({"A": "1"},) if kind is modal.Secret else ()
    kind.objects.create("made", *more)
    twice = error(lambda: kind.objects.create("made", *more))
    allowed = error(lambda: kind.objects.create("made", *more, allow_existing=True))
    names = [one.name for one in kind.objects.list()]
    newest = [one.name for one in kind.objects.list(max_objects=1)]
    kind.objects.delete("made")
    found[kind.__name__] = {
        "twice": twice, "allowed": allowed, "listed": "made" in names, "newest": newest,
        "gone": [error(lambda: kind.objects.delete("made")), error(lambda: kind.from_name("made").hydrate())],
        "allow": error(lambda: kind.objects.delete("made", allow_missing=True)),
    }
found["names"] = [d.info().name, q.info().name]
print(json.dumps(found))
"""


def test_dicts_and_queues_hold_to_what_modal_says_of_them(engine, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        env={**os.environ, **engine.environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["dict"] == {
        "large": True, "tuple": {"nested": [1, 2]}, "len": 4, "in": [True, False], "get": [1, None, "else"],
        "missing": "KeyError", "first": True, "second": False, "lock": 1, "pop": [1, None, "KeyError"],
        "keys": ["('a', 1)", "large", "one", "two"], "values": 4,
        "items": [["('a', 1)", {"nested": [1, 2]}], ["one", 1], ["two", 2]], "cleared": 0, "winners": 1,
    }  # fmt: skip
    waited = found["queue"].pop("waited")
    assert 0.3 <= waited < 15
    assert found["queue"] == {
        "len": [3, 1, 4], "iterate": [1, 2, 3], "still": 3, "get": 1, "many": [2, 3], "empty": None, "none": [],
        "timed": "Empty", "partition": "other", "late": "late", "full": "Full", "large": ["no error", None],
        "cleared": [0, 1], "ttl": [None, "stays"],
    }  # fmt: skip
    assert found["ephemeral"] == [1, 2, False]
    for kind in ("Dict", "Queue", "Secret"):
        one = found[kind]
        assert [one["twice"], one["allowed"]] == ["AlreadyExistsError", ["no error", None]], kind
        assert [one["listed"], one["newest"]] == [True, ["made"]]
        assert one["gone"] == ["NotFoundError", "NotFoundError"]
        assert one["allow"] == ["no error", None]
    assert found["names"] == ["d", "q"]


SHARED = """
import modal, os
app = modal.App("shared")
counts = modal.Dict.from_name("counts", create_if_missing=True)
work = modal.Queue.from_name("work", create_if_missing=True)

@app.function(max_containers=3)
def take(n):
    taken = []
    while (one := work.get(block=False)) is not None: taken.append(one)
    counts[f"by {os.environ['MODAL_TASK_ID']}"] = len(taken)
    return taken

@app.local_entrypoint()
def main():
    work.put_many(list(range(200)))
    taken = [one for some in take.map(range(6)) for one in some]
    report({"taken": sorted(taken), "counted": sum(counts.values()) <= 200, "left": work.len()})
"""


def test_each_item_of_a_queue_goes_to_one_of_several_containers(run_app):
    assert run_app(SHARED) == {"taken": list(range(200)), "counted": True, "left": 0}


SECRETS = """
import modal, os
app = modal.App("secrets")
first, second = modal.Secret.from_dict({"A": "1", "B": "1", "C": "1"}), modal.Secret.from_dict({"B": "2", "C": "2"})
named = modal.Secret.from_name("named", required_keys=["N"])
image = modal.Image.debian_slim().env({"A": "image", "I": "image", "IMAGE_ONLY": "yes"})

@app.function(image=image, secrets=[first, second, named, modal.Secret.from_dotenv()], env={"C": "env"},
              single_use_containers=True)
def look():
    import subprocess
    print("nothing of it in a log")
    listing = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True).stdout
    return {name: os.environ.get(name) for name in "ABCDNI"}, "value-of-N" in listing

@app.local_entrypoint()
def main():
    before = look.remote()
    named.update({"N": "value-of-N-2"})
    report({"before": before, "after": look.remote()[0]["N"]})
"""


def test_secrets_come_from_names_dicts_and_files_and_a_later_one_has_the_last_word(modal_cli, run_app, tmp_path):
    modal_cli("secret", "create", "named", "N=value-of-N-1", "D=named")
    (tmp_path / ".env").write_text('# kept here\nD="from the file"\nexport I=file\n')

    found = run_app(SECRETS)
    listed = modal_cli("secret", "list", "--json").stdout
    (tmp_path / "app.py").write_text(
        "import modal\napp = modal.App('lacks')\n"
        "@app.function(secrets=[modal.Secret.from_name('named', required_keys=['N', 'MORE'])])\ndef f(): pass\n"
    )
    lacks = modal_cli("run", "app.py::f", check=False)

    environment, shown = found["before"]
    assert environment == {
        "A": "1", "B": "2", "C": "env", "D": "from the file", "N": "value-of-N-1", "I": "file",
    }  # fmt: skip
    assert shown is False
    assert found["after"] == "value-of-N-2"
    assert "named" in listed
    assert "value-of-N" not in listed
    assert lacks.returncode != 0
    assert "MORE" in lacks.stdout + lacks.stderr


def test_the_command_line_shows_and_clears_dicts_and_queues(engine, modal_cli):
    program = (
        "import modal; d = modal.Dict.from_name('cli', create_if_missing=True); d['key'] = [1]; "
        "q = modal.Queue.from_name('cli', create_if_missing=True); q.put_many(['a', 'b'])"
    )
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **engine.environment}, check=True)
    said = {
        "items": modal_cli("dict", "items", "cli", "--json").stdout,
        "peek": modal_cli("queue", "peek", "cli").stdout,
    }
    modal_cli("dict", "clear", "--yes", "cli")
    modal_cli("queue", "delete", "--yes", "cli")
    left = "import modal; print(modal.Dict.from_name('cli').len()); modal.Queue.from_name('cli').hydrate()"
    after = subprocess.run(
        [sys.executable, "-c", left],
        env={**os.environ, **engine.environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert json.loads(said["items"]) == [{"key": "key", "value": [1]}]
    assert said["peek"].split() == ["a"]
    assert after.stdout.strip() == "0"
    assert "NotFoundError" in after.stderr
