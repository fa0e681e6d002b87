"""On the local engine, through the real client: a container fetches, others load what they cannot write."""

import hashlib

import pytest
from weights_hub import COMMIT, model_files

APP = """
    import errno, hashlib, os, pathlib
    import modal, gpuserve

    app = modal.App("weights")
    weights = gpuserve.VolumeWeightsCache(
        source=gpuserve.HubSource("org/model", revision=COMMIT),
        volume="models",
        token=gpuserve.SecretSpec(name="huggingface", required_keys=("HF_TOKEN",)),
        env={"HF_ENDPOINT": os.environ.get("HF_ENDPOINT", "")},
    )
    fetch = gpuserve.register_weights(app, weights)

    snapshot = f"snapshots/{weights.source.label}--{COMMIT}--{weights.source.selection_digest}/files"
    tuned = gpuserve.VolumeWeightsCache(
        source=gpuserve.VolumeSource("models", path=snapshot, name="copy"), volume="copies"
    )
    copy = gpuserve.register_weights(app, tuned, name="fetch_copy")
    tokenless = gpuserve.VolumeWeightsCache(source=weights.source, volume="others", env=weights.env)
    refuse = gpuserve.register_weights(app, tokenless, name="fetch_others")

    @app.function(image=SERVER_IMAGE, volumes=gpuserve.weights_volumes(weights))
    def load():
        snapshot = weights.snapshot()
        refused = []
        for path in (snapshot.path / "config.json", snapshot.path.parent / "manifest.json"):
            try: path.write_bytes(b"x")
            except OSError as error: refused.append(errno.errorcode[error.errno])
        files = {path.relative_to(snapshot.path).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                 for path in snapshot.path.rglob("*") if path.is_file()}
        return {"commit": snapshot.manifest.commit, "files": files, "refused": refused, "at": str(weights.path())}

    @app.local_entrypoint()
    def main():
        try: load.remote()
        except gpuserve.WeightsNotFoundError as error: before = str(error)
        try: refuse.remote()
        except gpuserve.GatedSourceError as error: gated = str(error)
        report_first = fetch.remote()
        again = fetch.remote()
        copied = copy.remote()
        report({"before": before, "gated": gated, "copied": [copied.digest == report_first.digest, copied.published],
                 "published": [report_first.published, again.published], "loaded": load.remote()})
"""


@pytest.fixture
def app_on_the_hub(hub):
    hub.commits[COMMIT] = model_files(0, numbers=4000)
    hub.token = "hf_right"
    return (
        APP.replace("COMMIT", repr(COMMIT))
        .replace("SERVER_IMAGE", "gpuserve.builders.lowering.modal_image(gpuserve.ImageSpec.debian())")
        .replace("import modal, gpuserve\n", "import modal, gpuserve, gpuserve.builders.lowering\n")
    )


def test_weights_are_fetched_in_one_container_and_loaded_read_only_in_another(app_on_the_hub, hub, run_app, modal_cli):
    modal_cli("secret", "create", "huggingface", "HF_TOKEN=hf_right")
    found = run_app(app_on_the_hub)
    loaded = found["loaded"]

    assert "fetch_weights" in found["before"]
    assert found["published"] == [True, False]
    assert loaded["commit"] == COMMIT
    assert loaded["files"] == {path: hashlib.sha256(data).hexdigest() for path, data in hub.commits[COMMIT].items()}
    assert found["gated"].startswith("org/model is gated")
    assert found["copied"] == [True, True]
    assert loaded["refused"] == ["EROFS", "EROFS"]
    assert loaded["at"].startswith("/gpuserve-weights/models/snapshots/")
