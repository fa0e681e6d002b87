def test_a_volume_written_in_one_container_is_read_in_another_and_by_the_cli(run_app, modal_cli, tmp_path):
    found = run_app("""
        import modal
        app = modal.App("volumes")
        volume = modal.Volume.from_name("weights", create_if_missing=True)

        @app.function(volumes={"/models/here": volume})
        def write():
            import pathlib
            pathlib.Path("/models/here/a").mkdir(exist_ok=True)
            pathlib.Path("/models/here/a/w.bin").write_bytes(b"12345")
            volume.commit()

        @app.function(volumes={"/else": volume.with_mount_options(read_only=True)})
        def read():
            import pathlib
            try: pathlib.Path("/else/new").write_text("x")
            except OSError as error: refused = error.errno
            return pathlib.Path("/else/a/w.bin").read_bytes().decode(), refused

        @app.local_entrypoint()
        def main():
            write.remote()
            report(read.remote())
    """)
    (tmp_path / "big").write_bytes(b"abc" * 4_000_000 + b"\0" * 9_000_000)
    modal_cli("volume", "put", "weights", "big", "/big")
    modal_cli("volume", "get", "weights", "/big", "back")
    modal_cli("volume", "get", "weights", "a/w.bin", "w.bin")
    again = modal_cli("volume", "put", "weights", "big", "/big", check=False)
    escape = modal_cli("volume", "get", "weights", "../../engine.sqlite3", "stolen", check=False)

    assert found == ["12345", 30]
    assert (tmp_path / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert (tmp_path / "w.bin").read_bytes() == b"12345"
    assert again.returncode != 0
    assert escape.returncode != 0
    assert not (tmp_path / "stolen").exists()


def test_secrets_dicts_and_queues_hold_what_they_are_given(run_app, modal_cli):
    modal_cli("secret", "create", "keys", "HF_TOKEN=hf_1", "OTHER=2")
    found = run_app("""
        import modal
        app = modal.App("state")
        d = modal.Dict.from_name("d", create_if_missing=True)
        q = modal.Queue.from_name("q", create_if_missing=True)

        @app.function(secrets=[modal.Secret.from_name("keys", required_keys=["HF_TOKEN"]),
                               modal.Secret.from_dict({"OTHER": "3"})])
        def look():
            import os
            d["from container"] = [1, 2]
            q.put_many(["a", "b"])
            return os.environ["HF_TOKEN"], os.environ["OTHER"]

        @app.local_entrypoint()
        def main():
            secrets = look.remote()
            report({"secrets": secrets, "dict": d["from container"], "first": d.put("k", 1, skip_if_exists=True),
                    "second": d.put("k", 2, skip_if_exists=True), "popped": d.pop("k"), "queue": q.get_many(5),
                    "empty": q.get(block=False)})
    """)
    missing = modal_cli("secret", "list")

    assert found == {
        "secrets": ["hf_1", "3"],
        "dict": [1, 2],
        "first": True,
        "second": False,
        "popped": 1,
        "queue": ["a", "b"],
        "empty": None,
    }
    assert "hf_1" not in missing.stdout
