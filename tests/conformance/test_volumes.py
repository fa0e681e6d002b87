"""Volumes in containers, from Python and from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

BLOCK = 8 << 20

MOUNTED = """
import modal, os, pathlib
app = modal.App("mounted")
LINK, OVER = os.environ.get("LINK", "/x"), "/usr/share"
image = modal.Image.debian_slim().env({"LINK": LINK})
outer = modal.Volume.from_name("outer", create_if_missing=True)
inner = modal.Volume.from_name("inner", create_if_missing=True)
linked = modal.Volume.from_name("linked", create_if_missing=True)
over = modal.Volume.from_name("over", create_if_missing=True)

@app.function(image=image, volumes={"/models": outer, "/models/deep/inner": inner, LINK: linked, OVER: over})
def write():
    pathlib.Path("/models/a/b").mkdir(parents=True)
    pathlib.Path("/models/a/b/w.bin").write_bytes(b"weights")
    pathlib.Path("/models/deep/inner/i.txt").write_text("inner")
    pathlib.Path(LINK, "l.txt").write_text("linked")
    seen = {"over": os.listdir(OVER), "deep": os.listdir("/models/deep"), "beside": os.path.isdir("/usr/lib"),
            "device": os.stat("/models").st_dev == os.stat("/models/a/b/w.bin").st_dev}
    os.rename("/models/a/b/w.bin", "/models/a/w2.bin")
    os.symlink("w2.bin", "/models/a/latest")
    os.symlink("nowhere", "/models/a/broken")
    outer.commit(); inner.commit(); linked.commit()
    return seen

@app.function(image=image, volumes={
    "/ro": outer.with_mount_options(read_only=True), "/part": inner.with_mount_options(sub_path="made/here"),
    "/also/ro": linked.with_mount_options(read_only=True, sub_path="."),
})
def read():
    refused = []
    for attempt in (lambda: pathlib.Path("/ro/new").write_text("x"), lambda: os.remove("/ro/a/w2.bin"),
                    lambda: os.chmod("/ro/a/w2.bin", 0o600), lambda: pathlib.Path("/also/ro/new").touch()):
        try: attempt()
        except OSError as error: refused.append(error.errno)
    pathlib.Path("/part/p.txt").write_text("part")
    outer.reload()
    return {"refused": refused, "latest": pathlib.Path("/ro/a/latest").read_bytes().decode(),
            "linked": pathlib.Path("/also/ro/l.txt").read_text()}

@app.local_entrypoint()
def main():
    written, seen = write.remote(), read.remote()
    for link in ("a/latest", "a/broken"): outer.remove_file(link)
    report({"written": written, "read": seen, "left": sorted(one.path for one in outer.listdir("a", recursive=True)),
            "inner": sorted(one.path for one in inner.listdir("/", recursive=True)),
            "host": [os.path.lexists(one) for one in ("/models", "/ro", "/part", "/also")]})
"""


def test_volumes_mount_anywhere_in_the_container_and_nowhere_on_the_host(run_app, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("LINK", str(tmp_path / "link" / "mounted"))
    before = sorted(Path("/usr/share").iterdir())

    found = run_app(MOUNTED)

    assert found["written"] == {"over": [], "deep": ["inner"], "beside": True, "device": True}
    assert found["read"] == {"refused": [30, 30, 30, 30], "latest": "weights", "linked": "linked"}
    assert found["inner"] == ["i.txt", "made", "made/here", "made/here/p.txt"]
    assert found["left"] == ["a/b", "a/w2.bin"]  # a link is removed, and not what it points to
    assert found["host"] == [False] * 4
    assert list((tmp_path / "real").iterdir()) == []
    assert sorted(Path("/usr/share").iterdir()) == before


def test_a_sub_path_out_of_the_volume_and_a_file_inside_a_volume_are_refused_by_name(modal_cli, tmp_path):
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "app.py").write_text(
        textwrap.dedent("""
        import modal
        app = modal.App("refused")
        volume = modal.Volume.from_name("refused", create_if_missing=True)
        image = modal.Image.debian_slim().add_local_file("note.txt", "/models/note.txt")
        @app.function(image=image, volumes={"/models": volume})
        def inside(): pass
        @app.function(volumes={"/models": volume.with_mount_options(sub_path="up/../../other")})
        def out(): pass
        """)
    )
    for name, words in {"inside": "the path /models/note.txt lies inside a volume", "out": "leads out of it"}.items():
        done = modal_cli("run", f"app.py::{name}", check=False)
        assert done.returncode != 0
        assert words in " ".join((done.stdout + done.stderr).split()), done.stdout + done.stderr


CLIENT = """
import io, json, modal, pathlib, sys
from modal.exception import *
BLOCK = 8 << 20
found = {}
def error(work):
    try: work()
    except Exception as raised: return type(raised).__name__
for version in (1, 2):
    volume = modal.Volume.from_name(f"version-{version}", create_if_missing=True, version=version)
    sparse = b"head" + b"\\0" * (2 * BLOCK) + b"tail" + b"\\0" * 100
    with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(sparse), "/sparse")
        batch.put_file(io.BytesIO(b"\\0" * (BLOCK + 5)), "zeros")
        batch.put_file(io.BytesIO(b""), "/deep/er/empty")
        batch.put_file(io.BytesIO(b"#!/bin/sh"), "/run.sh", mode=0o755)
        batch.put_directory("tree", "/tree")
    def again():
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"new"), "/fresh")
            batch.put_file(io.BytesIO(b"x"), "/run.sh")
    refused = error(again)
    kept = error(lambda: list(volume.read_file("fresh")))
    with volume.batch_upload(force=True) as batch: batch.put_file(io.BytesIO(b"x"), "/run.sh")
    pieces = list(volume.read_file("sparse"))
    out = io.BytesIO()
    volume.read_file_into_fileobj("/zeros", out)
    listed = {one.path: [one.type.name, one.size] for one in volume.iterdir("/", recursive=True)}
    volume.copy_files(["tree/a.txt", "run.sh"], "both/")
    volume.copy_files(["zeros"], "zeros2")
    if version == 2: volume.copy_files(["tree"], "tree2", recursive=True)
    volume.remove_file("deep", recursive=True)
    volume.remove_file("/sparse")
    rest = sorted(one.path for one in volume.iterdir("/", recursive=True))
    found[version] = {
        "refused": refused, "kept": kept, "sparse": b"".join(pieces) == sparse,
        "zeros": out.getvalue() == b"\\0" * (BLOCK + 5),
        "listed": listed, "rest": rest, "one": [one.path for one in volume.listdir("tree")],
        "file": [one.path for one in volume.listdir("tree/a.txt")],
        "missing": [error(lambda: list(volume.read_file("no"))), error(lambda: volume.listdir("no")),
                    error(lambda: volume.remove_file("no")), error(lambda: volume.copy_files(["no"], "x"))],
        "folder": error(lambda: volume.remove_file("tree")),
        "out": error(lambda: list(volume.read_file("../../engine.sqlite3"))),
        "other": error(lambda: modal.Volume.from_name(f"version-{version}", version=3 - version).hydrate()),
    }
print(json.dumps(found))
"""


def client(engine, source: str, folder: Path):
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, **engine.environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_files_of_both_versions_are_put_read_listed_copied_and_removed(engine, tmp_path):
    tree = tmp_path / "tree"
    (tree / "ünï").mkdir(parents=True)
    (tree / "ünï" / "ô.txt").write_text("x")
    for name in ("a.txt", ".hidden", "user.tmp", ".tmp-of-mine.tmp"):
        (tree / name).write_text(name)
    (tree / "large").write_bytes(b"l" * (5 << 20))

    found = client(engine, CLIENT, tmp_path)

    in_tree = [
        "tree/" + name for name in (".hidden", ".tmp-of-mine.tmp", "a.txt", "large", "user.tmp", "ünï", "ünï/ô.txt")
    ]
    for version in ("1", "2"):
        one = found[version]
        assert [one["refused"], one["kept"]] == ["FileExistsError", "FileNotFoundError"], version  # all or none
        assert [one["sparse"], one["zeros"]] == [True, True]
        assert sorted(one["listed"]) == sorted(
            ["sparse", "zeros", "run.sh", "deep", "deep/er", "deep/er/empty", "tree", *in_tree]
        )
        assert one["listed"]["sparse"] == ["FILE", 2 * BLOCK + 108]
        assert one["listed"]["tree"][0] == "DIRECTORY"
        copies = ["both", "both/a.txt", "both/run.sh", "zeros2"]
        copies += [path.replace("tree", "tree2", 1) for path in ["tree", *in_tree]] if version == "2" else []
        assert one["rest"] == sorted(["zeros", "run.sh", "tree", *in_tree, *copies])
        assert sorted(one["one"]) == sorted(path for path in in_tree if path.count("/") == 1)
        assert one["file"] == ["tree/a.txt"]
        assert one["missing"][0] == "FileNotFoundError"
        assert all(one["missing"])
        assert one["folder"]
        assert one["out"]
        assert one["other"] == "InvalidError"
    assert list((engine.home / "volumes" / ".staging").iterdir()) == []


def test_the_command_line_manages_volumes_and_their_files(engine, modal_cli, tmp_path):
    (tmp_path / "dir" / "deep").mkdir(parents=True)
    (tmp_path / "dir" / "deep" / "one").write_text("1")
    modal_cli("volume", "create", "shelf")
    modal_cli("volume", "put", "shelf", "dir", "/")
    modal_cli("volume", "cp", "shelf", "dir/deep/one", "copy")
    modal_cli("volume", "rename", "--yes", "shelf", "cupboard")
    listed = json.loads(modal_cli("volume", "ls", "cupboard", "--json").stdout)
    modal_cli("volume", "rm", "cupboard", "/", "-r")
    found = client(
        engine,
        "import json, modal\nprint(json.dumps([len(modal.Volume.from_name('cupboard').listdir('/')),"
        "[one.name for one in modal.Volume.objects.list()]]))",
        tmp_path,
    )

    assert sorted(one["filename"] for one in listed) == ["copy", "dir"]
    assert found[0] == 0  # all its files, and not the volume itself
    assert "cupboard" in found[1]
    assert "shelf" not in found[1]
