"""Thirty bad inputs, those that are HTTP's: each is answered as it must be, over a real socket."""

from __future__ import annotations

import json
import time
import zlib

import psutil
import pytest

from gpuserve import Http

from .conftest import KEY, OTHER_KEY, serving
from .served import LIMIT, Echo

pytestmark = pytest.mark.wide


@pytest.fixture(scope="module")
def served():
    http = Http(hosts=("here", "127.0.0.1"), max_header_bytes=32_768, body_timeout_s=0.2)
    with serving(Echo, http) as running:
        yield running


def body(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def prompt(**settings: object) -> bytes:
    return json.dumps({"input": {"prompt": "a", "settings": settings}}).encode()


DEEP = 100_000
BODIES = {
    "NaN": (prompt(temperature=float("nan")), 400, "invalid_number", "finite"),
    "1e999": (body('{"input": {"prompt": "a", "settings": {"temperature": 1e999}}}'), 400, "invalid_number", "finite"),
    "-Infinity": (prompt(temperature=float("-inf")), 400, "invalid_number", "finite"),
    "a negative number": (prompt(max_tokens=-5), 422, "invalid_input", "greater than or equal to 1; got -5"),
    "none at all": (prompt(max_tokens=0), 422, "invalid_input", "input.settings.max_tokens"),
    "one above the limit": (
        prompt(max_tokens=LIMIT + 1),
        422,
        "invalid_input",
        f"or equal to {LIMIT}; got {LIMIT + 1}",
    ),
    "a billion": (prompt(n=10**9), 422, "invalid_input", "less than or equal to 8; got 1000000000"),
    "5,000 digits": (prompt(n=1).replace(b"1}", b"9" * 5000 + b"}"), 400, "number_too_long", "5,000 digits"),
    "309 digits": (prompt(n=1).replace(b"1}", b"9" * 309 + b"}"), 400, "number_too_long", "309 digits"),
    "nested arrays": (b"[" * DEEP + b"]" * DEEP, 400, "too_deep", "deeper than 64"),
    "unclosed arrays": (b"[" * DEEP, 400, "too_deep", "deeper than 64"),
    "invalid UTF-8": (b'{"input": "abc\xff"}', 400, "invalid_utf8", "at byte 14"),
    "cut UTF-8": (b'{"input": "\xe2\x82', 400, "invalid_utf8", "at byte 11"),
    "half a pair": (b'{"input": {"prompt": "\\ud800"}}', 400, "invalid_unicode", "half of a surrogate pair"),
    "half a pair as a name": (b'{"\\udc00": 1}', 400, "invalid_unicode", "half of a surrogate pair"),
    "a key twice": (b'{"input": {"prompt": "a", "prompt": "b"}}', 400, "duplicate_key", "'prompt'"),
    "a wrong field": (prompt(max_tokns=3), 422, "invalid_input", "did you mean 'max_tokens'?"),
    "a wrong field above": (b'{"input": {"prompt": "a"}, "inptu": 1}', 422, "invalid_input", "did you mean 'input'?"),
    "true for a number": (prompt(n=True), 422, "invalid_input", "valid integer; got True"),
    "text for a number": (prompt(max_tokens="7"), 422, "invalid_input", "valid integer; got str"),
    "nothing": (b"", 400, "empty_body", "empty"),
    "blanks": (b" \r\n\t", 400, "empty_body", "empty"),
    "no JSON": (b"{", 400, "invalid_json", "at character 1"),
    "more than JSON": (b'{"input": 1} x', 400, "invalid_json", "at character 13"),
    "a list": (b"[]", 422, "invalid_input", "body"),
    "no input": (b"{}", 422, "invalid_input", "got nothing"),
    "very many values": (b"[" + b"0," * 100_000 + b"0]", 400, "too_many_values", "100000"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused_with_what_is_wrong(served, name):
    content, status, code, words = BODIES[name]

    answer = served.ask("/predict", content, "Content-Type: application/json")

    assert answer.fault == (status, code)
    assert words in answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]
    assert not answer.closed, "a body that is wrong does not end the connection"


@pytest.mark.parametrize("name", [name for name, (_, status, *_) in BODIES.items() if status == 400])
def test_a_bad_body_is_refused_on_a_route_of_the_users_own_as_well(served, name):
    content, status, code, _ = BODIES[name]
    if name == "nothing":
        status, code = 422, "invalid_input"  # FastAPI's own: a body may be optional there

    assert served.ask("/own", content, "Content-Type: application/json").fault == (status, code)


def test_every_refusal_of_a_field_names_it_for_machines(served):
    assert served.ask("/predict", prompt(n=0)).error["param"] == "input.settings.n"
    assert served.ask("/own", b'{"number": "x"}').error["param"] == "number"
    assert served.ask("/own/12").error["param"] == "number"


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("Content-Type: text/plain", "'text/plain'"),
        ("Content-Type: application/xml; charset=utf-8", "'application/xml'"),
        ("Content-Encoding: gzip", "'gzip'"),
        ("Content-Encoding: br", "send the body as it is"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/letters", "/own"])
def test_another_kind_of_body_is_not_guessed_at(served, path, header, words):
    content = zlib.compress(prompt(), wbits=31) if "gzip" in header else prompt()

    answer = served.ask(path, content, header)

    assert answer.fault == (415, "unsupported_media_type")
    assert words in answer.error["message"]


def test_json_with_a_charset_is_json(served):
    for header in ("Content-Type: application/json; charset=utf-8", "Content-Type: APPLICATION/JSON", "X-None: 1"):
        assert served.ask("/predict", prompt(), header).status == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(served):
    process = psutil.Process()
    before = process.memory_info().rss

    stated = served.raw(head("Content-Length: 209715200"))
    part = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    untold = served.raw(head("Transfer-Encoding: chunked") + part * 17)

    assert stated.fault == untold.fault == (413, "body_too_large")
    assert "1048576 bytes" in stated.error["message"]
    assert process.memory_info().rss - before < 32 * 2**20


def head(*lines: str, host: str = "Host: here", path: str = "/predict") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", host, f"Authorization: Bearer {KEY}", *lines, "", ""]).encode()


def test_half_a_million_chunks_of_one_byte_are_one_body(served):
    process = psutil.Process()
    text = b'{"input": {"prompt": "' + b"a" * 500_000 + b'"}}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text)
    before = process.memory_info().rss
    answer = served.raw(head("Content-Type: application/json", "Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n")
    # it came whole, and is judged by what its field allows
    assert answer.fault == (422, "invalid_input")
    assert "at most 10000 characters" in answer.error["message"]
    assert process.memory_info().rss - before < 32 * 2**20


@pytest.mark.parametrize("path", ["/predict", "/own", "/letters"])
def test_a_body_that_stops_coming_is_told_so_and_closed(served, path):
    begun = time.monotonic()

    answer = served.raw(head("Content-Length: 100", path=path) + b'{"input"')

    assert answer.fault == (408, "body_timeout")
    assert "8 bytes in" in answer.error["message"]
    assert answer.closed
    assert time.monotonic() - begun < 5


LARGE_HEADS = {
    "one over the bytes": ["X-Large: " + "a" * 2**15],
    "one over the count": [f"X-{n}: a" for n in range(99)],
    "one of 1 MiB": ["X-Large: " + "a" * 2**20],
    "10,000 of them": [f"X-{n}: a" for n in range(10_000)],
}


@pytest.mark.parametrize("lines", LARGE_HEADS.values(), ids=list(LARGE_HEADS))
def test_headers_over_the_limit_are_refused(served, lines):
    process = psutil.Process()
    before = process.memory_info().rss

    answer = served.ask("/predict", prompt(), *lines)

    # what is over uvicorn's own buffer is refused while it comes, and closed
    assert answer.fault in {(431, "headers_too_large"), (431, "head_too_large")}
    assert "are the most" in answer.error["message"] or "send less" in answer.error["message"]
    assert answer.closed == (answer.fault[1] == "head_too_large")
    assert process.memory_info().rss - before < 32 * 2**20


def test_hosts_are_those_that_were_declared(served):
    authorization = f"Authorization: Bearer {KEY}\r\n\r\n"
    for path in ("/health", "/predict", "/openapi.json", "/nowhere"):
        line = f"GET {path} HTTP/1.1\r\n"
        two = served.raw(f"{line}Host: here\r\nHost: here\r\n{authorization}".encode())
        none = served.raw(f"{line}{authorization}".encode())
        evil = served.raw(f"{line}Host: evil.example\r\n{authorization}".encode())

        assert [one.fault for one in (two, none, evil)] == [
            (400, "duplicate_header"),
            (400, "missing_host"),
            (421, "wrong_host"),
        ]
        assert "evil" not in evil.error["message"]
    for host in ("HERE:8000", "here.", "127.0.0.1"):
        assert served.ask("/health", None, f"Host: {host}").status == 200
    for host in ("here.evil.example", "x/?here", "x@here", "here#", "[::1]", "*"):
        assert served.ask("/health", None, f"Host: {host}").status in {400, 421}


UNKNOWN = [
    "Authorization: Basic " + KEY,
    "Authorization: Bearer",
    "Authorization: Bearer ",
    "Authorization: " + KEY,
    "Authorization: Bearer " + "a" * 10_240,
    f"Authorization: Bearer {KEY[:-1]}",
    f"Authorization: Bearer {KEY}x",
    f"Authorization: Bearer {KEY}, Bearer {OTHER_KEY}",
    "Authorization: Bearer \xff\xfe",
]


def test_whoever_has_no_key_is_told_one_thing_whatever_was_sent(served):
    answers = [served.ask("/predict", prompt(), line) for line in UNKNOWN]
    answers.append(served.ask("/predict", prompt(), key=None))

    assert {answer.fault for answer in answers} == {(401, "unauthorized")}
    assert len({answer.body for answer in answers}) == 1
    assert all(answer.headers["www-authenticate"] == 'Bearer realm="gpuserve"' for answer in answers)


def test_two_authorizations_are_none(served):
    answer = served.ask("/predict", prompt(), f"Authorization: Bearer {KEY}", f"authorization: Bearer {KEY}")

    assert answer.fault == (400, "duplicate_header")


@pytest.mark.parametrize("name", ["token", "key", "api_key", "access_token", "API-Key", "a=1&apikey"])
def test_a_key_in_the_address_opens_nothing_and_is_told_where_it_belongs(served, name):
    answer = served.ask(f"/predict?{name}={KEY}", prompt(), key=None)

    assert answer.fault == (401, "unauthorized")
    assert "send Authorization: Bearer KEY" in answer.error["message"]
    assert "address" in answer.error["message"]
    assert KEY not in answer.body.decode()


def test_an_access_decision_is_never_made_from_another_spelling_of_a_path(served):
    for path in ("//health", "/health/", "/%2e%2e/health", "/health;a=b", "/x/../health", "/health%00", "/HEALTH"):
        assert served.ask(path, None, key=None).fault == (401, "unauthorized"), path
    assert served.ask("/health", None, key=None).status == 200


def test_a_request_id_is_taken_where_it_is_well_formed_and_made_where_not(served):
    taken = served.ask("/predict", prompt(), "X-Request-Id: order-7.a:b_c")
    made = [served.ask("/predict", prompt(), f"X-Request-Id: {one}") for one in ("a b", "a" * 129, "", "\xff", "a\tb")]

    assert taken.headers["x-request-id"] == "order-7.a:b_c"
    ids = {answer.headers["x-request-id"] for answer in made}
    assert len(ids) == len(made)
    assert all(len(one) == 32 and one.isalnum() for one in ids)


def test_what_fails_inside_is_told_in_the_log_alone(served, capfd):
    answer = served.ask("/predict", json.dumps({"input": {"prompt": "boom"}}).encode())

    assert answer.fault == (500, "internal_error")
    assert answer.headers["x-request-id"] in answer.error["message"]
    assert not any(word in answer.body.decode() for word in ("secret", "/root", "Traceback", "RuntimeError"))
    log = capfd.readouterr().err
    assert "secret internals" in log
    assert answer.headers["x-request-id"] in log


def test_a_method_that_a_route_does_not_have_is_told_which_it_has(served):
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "GET"):
        answer = served.ask("/predict", None, method=method)
        assert answer.fault == (405, "method_not_allowed")
        assert answer.headers["allow"] == "POST"
