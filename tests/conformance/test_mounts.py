"""Sources and files of an app: what is sent, what a container sees of it, and that it is a copy."""

from __future__ import annotations

import hashlib
import os

LARGE = 5 << 20  # modal sends files of 4 MiB and more as blobs

APP = """
import modal, os, pathlib
app = modal.App("mounts")
image = (modal.Image.debian_slim()
         .add_local_dir("data", "/srv/data", ignore=["**/*.log", "!keep.log"])
         .add_local_file("large.bin", "/srv/")
         .add_local_file("tool", "/srv/bin/tool")
         .add_local_file("small.txt", "/etc/hosts.d/small.txt")
         .add_local_python_source("shop"))

def state(path):
    import hashlib
    return [hashlib.sha256(path.read_bytes()).hexdigest(), oct(path.stat().st_mode & 0o777)]

@app.function(image=image)
def look():
    import subprocess, shop.prices
    data = pathlib.Path("/srv/data")
    seen = {
        "tree": {str(one.relative_to(data)): state(one) for one in sorted(data.rglob("*")) if one.is_file()},
        "large": state(pathlib.Path("/srv/large.bin")), "tool": subprocess.check_output(["/srv/bin/tool"]).decode(),
        "small": pathlib.Path("/etc/hosts.d/small.txt").read_text(), "price": shop.prices.APPLE,
        "shop": sorted(os.listdir("/root/shop")), "root": sorted(one for one in os.listdir("/root") if one == "app.py"),
        "etc": os.path.exists("/etc/passwd"),
    }
    pathlib.Path("/srv/data/new.txt").write_text("new")
    pathlib.Path("/srv/data/a.csv").write_text("changed")
    pathlib.Path("/root/made.txt").write_text("made")
    try: pathlib.Path("/srv/large.bin").write_bytes(b"")
    except OSError as error: seen["refused"] = error.errno
    return seen

@app.function(image=image, include_source=False, serialized=True)
def without():
    here = [os.path.exists(f"/root/{name}") for name in ("app.py", "made.txt")]
    return [*here, pathlib.Path("/srv/data/a.csv").read_text()]

@app.local_entrypoint()
def main():
    first = look.remote()
    report({"first": first, "without": without.remote()})
"""


def test_files_of_every_kind_and_size_reach_the_container_and_stay_as_they_are_here(run_app, tmp_path):
    data = tmp_path / "data"
    (data / "ünï" / "日本").mkdir(parents=True)
    (data / "empty").mkdir()
    (data / "ünï" / "日本" / "naïve file.txt").write_text("x")
    (data / "a.csv").write_text("1,2")
    (data / "no.log").write_text("no")
    (data / "keep.log").write_text("yes")
    (data / "link.csv").symlink_to("a.csv")
    (data / "linked").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far.txt").write_text("far")
    (data / "run.sh").write_text("#!/bin/sh\n")
    (data / "run.sh").chmod(0o755)
    (data / "nothing").touch()
    large = os.urandom(LARGE)
    (tmp_path / "large.bin").write_bytes(large)
    tool = b"#!/bin/sh\necho from a large script\nexit 0\n" + b"#" * LARGE
    (tmp_path / "tool").write_bytes(tool)
    (tmp_path / "tool").chmod(0o755)
    (tmp_path / "small.txt").write_text("small")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "prices.py").write_text("APPLE = 3\n")
    (tmp_path / "shop" / "prices.csv").write_text("not source")

    found = run_app(APP)

    first = found["first"]
    tree = first.pop("tree")
    names = {"a.csv", "keep.log", "link.csv", "nothing", "run.sh", "ünï/日本/naïve file.txt"}
    assert set(tree) - {"linked/far.txt"} == names
    assert tree["link.csv"][0] == tree["a.csv"][0] == hashlib.sha256(b"1,2").hexdigest()
    assert tree["run.sh"][1] == "0o755"
    assert tree["a.csv"][1] == oct((data / "a.csv").stat().st_mode & 0o777)
    assert first["large"][0] == hashlib.sha256(large).hexdigest()
    assert first["tool"] == "from a large script\n"
    assert first["refused"] == 30  # EROFS: a large file is not copied for each container
    kept = {name: [one for one in first[name] if one != "__pycache__"] for name in ("shop", "root")}
    assert [first["small"], first["price"], kept["shop"]] == ["small", 3, ["__init__.py", "prices.py"]]
    assert [kept["root"], first["etc"]] == [["app.py"], True]
    assert found["without"] == [False, False, "1,2"]  # another container has files of its own
    assert (data / "a.csv").read_text() == "1,2"
    assert not (data / "new.txt").exists()
    assert not os.path.lexists("/srv/data")
    assert not os.path.lexists("/etc/hosts.d")


def test_a_package_run_as_a_module_brings_its_modules_and_what_lies_beside_them(modal_cli, tmp_path):
    package = tmp_path / "shop"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py"):
        (package / name).touch()
    (package / "inner" / "prices.py").write_text("APPLE = 3\n")
    (package / "inner" / "prices.csv").write_text("4")
    (package / "app.py").write_text(
        "import modal, os\nfrom .inner.prices import APPLE\n"
        'app = modal.App("shop")\n'
        "@app.function()\n"
        "def price():\n"
        "    beside = os.path.join(os.path.dirname(__file__), 'inner', 'prices.csv')\n"
        "    return APPLE, __name__, open(beside).read()\n"
        "@app.local_entrypoint()\n"
        'def main(): print("got", price.remote())\n'
    )
    done = modal_cli("run", "-m", "shop.app")

    assert "got (3, 'shop.app', '4')" in done.stdout


def test_a_changed_file_is_sent_again_and_an_unchanged_one_is_not(engine, modal_cli, tmp_path):
    (tmp_path / "app.py").write_text(
        "import modal\n"
        'app = modal.App("again")\n'
        'image = modal.Image.debian_slim().add_local_file("note.txt", "/srv/note.txt")\n'
        "@app.function(image=image)\n"
        'def read(): return open("/srv/note.txt").read()\n'
        "@app.local_entrypoint()\n"
        'def main(): print("got", read.remote())\n'
    )
    said, kept = [], []
    for text in ("one", "two"):
        (tmp_path / "note.txt").write_text(text)
        said.append(modal_cli("run", "app.py").stdout.partition("got ")[2].split()[0])
        kept.append(len(list((engine.home / "mounts").iterdir())))

    assert said == ["one", "two"]
    assert kept[1] == kept[0] + 1
