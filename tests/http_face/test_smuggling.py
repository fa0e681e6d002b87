"""No request hides another: what can be read in two ways is refused, and what has one reading ends where it says."""

from __future__ import annotations

import contextlib
import re

import pytest

from gpuserve import Http

from .conftest import serving
from .framed import BODY, CHUNKED, LENGTH, SECOND, post
from .served import Echo

pytestmark = pytest.mark.wide

protocol = pytest.importorskip("gpuserve.runtime.http.protocol")

# What an attacker hides: if anything answers it, its answer says "ready" as no other does.
HIDDEN = b"GET /ready HTTP/1.1\r\nHost: here\r\n\r\n"
# What an honest client sends next on the same connection: it is answered as itself, or not at all.
LAST = b"GET /health HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"


def get(*lines: bytes, first: bytes = b"GET /health HTTP/1.1", host: bytes = b"Host: here\r\n") -> bytes:
    return first + b"\r\n" + host + b"".join(lines) + b"\r\n"


def chunked(size: bytes = b"1a\r\n", end: bytes = b"\r\n", last: bytes = b"0\r\n", trailer: bytes = b"\r\n") -> bytes:
    """A request of one chunk, of which one part is not as it should be."""
    return post(CHUNKED, body=size + BODY + end + last + trailer)


def encoded(*lines: bytes) -> bytes:
    """A chunked request whose headers state the encoding in another way."""
    return post(*lines, body=b"1a\r\n" + BODY + b"\r\n0\r\n\r\n")


def sized(*lines: bytes) -> bytes:
    """A request with a plain body whose headers state the length in another way."""
    return post(*lines, body=BODY)


REFUSED = {
    # RFC 9112, 2.2: a bare line feed may be taken for a line's end, and then by all or by none; here by none.
    "a head whose lines all end with a line feed": post(LENGTH, body=BODY).replace(b"\r\n", b"\n"),
    "a request line that ends with a line feed": SECOND.replace(b"\r\n", b"\n", 1),
    "a request line that ends with a carriage return": SECOND.replace(b"\r\n", b"\r", 1),
    "a header that ends with a line feed": get(b"X-A: a\n"),
    "a length behind a line feed": sized(b"X-A: a\nContent-Length: 26\r\n"),
    "an empty line that is a line feed": SECOND[:-2] + b"\n",
    "a head that ends with two line feeds": SECOND[:-4] + b"\n\n",
    "a header that ends with two carriage returns": get(b"X-A: a\r\r\n"),
    # 7.1: a chunk's size is hexadecimal digits and nothing else, and CRLF ends its line and its data.
    "a size that ends with a line feed": chunked(size=b"1a\n"),
    "a size that ends with a carriage return": chunked(size=b"1a\r"),
    "a chunk's data that end with a line feed": chunked(end=b"\n"),
    "a chunk's data that end with a carriage return": chunked(end=b"\r"),
    "a chunk's data that just end": chunked(end=b""),
    "a last size that ends with a line feed": chunked(last=b"0\n"),
    "a body that ends with a line feed": chunked(trailer=b"\n"),
    "a size with a plus": chunked(size=b"+1a\r\n"),
    "a size with a prefix in capitals": chunked(size=b"0X1a\r\n"),
    "a size behind a blank": chunked(size=b" 1a\r\n"),
    "a size before a blank": chunked(size=b"1a \r\n"),
    "a size before a tab": chunked(size=b"1a\t\r\n"),
    "a size with a blank in it": chunked(size=b"1 a\r\n"),
    "a size with an underscore": chunked(size=b"1_a\r\n"),
    "a size with a letter that is no digit": chunked(size=b"1g\r\n"),
    "a size that is 0 in 64 bits": chunked(size=b"10000000000000000\r\n"),
    "a size that is right in 64 bits": chunked(size=b"1000000000000001a\r\n"),
    # 7.1.1: an extension ends where its line ends, in quotes too.
    "an extension with a carriage return": chunked(size=b"1a;a=b\rc\r\n"),
    "an extension with a line feed": chunked(size=b"1a;a=b\nc\r\n"),
    "an extension that ends with a line feed": chunked(size=b"1a;a\n"),
    "an extension with a line's end in quotes": chunked(size=b'1a;a="b\r\nc"\r\n'),
    "an extension with a line feed in quotes": chunked(size=b'1a;a="b\nc"\r\n'),
    "an extension with a zero byte": chunked(size=b"1a;a\x00b\r\n"),
    "a last chunk's extension that ends with a line feed": chunked(last=b"0;a\n"),
    # 6.1: chunked comes once and last, and no other encoding is known.
    "chunked twice in one header": encoded(b"Transfer-Encoding: chunked, chunked\r\n"),
    "chunked in two headers": encoded(CHUNKED, CHUNKED),
    "chunked, and identity in another header": encoded(CHUNKED, b"Transfer-Encoding: identity\r\n"),
    "identity": encoded(b"Transfer-Encoding: identity\r\n"),
    "identity and a length": sized(b"Transfer-Encoding: identity\r\n", LENGTH),
    "no encoding and a length": sized(b"Transfer-Encoding: \r\n", LENGTH),
    "chunked behind a tab, and a length": post(b"Transfer-Encoding:\tchunked\r\n", LENGTH, body=b"0\r\n\r\n" + HIDDEN),
    "chunked behind a vertical tab": encoded(b"Transfer-Encoding: \x0bchunked\r\n"),
    "chunked before a tab": encoded(b"Transfer-Encoding: chunked\t\r\n"),
    "chunked before a zero byte": encoded(b"Transfer-Encoding: chunked\x00\r\n"),
    "chunked with a parameter": encoded(b"Transfer-Encoding: chunked;a=b\r\n"),
    "an encoding that is not known, and then chunked": encoded(b"Transfer-Encoding: gzip, chunked\r\n"),
    "identity, and chunked in the next header": encoded(b"Transfer-Encoding: identity\r\n", CHUNKED),
    "chunked on a line of its own": encoded(b"Transfer-Encoding:\r\n chunked\r\n"),
    # 6.3: a length is digits, once. RFC 9110, 8.6, lets equal ones be taken for one; here they are not.
    "two equal lengths": sized(LENGTH, LENGTH),
    "two lengths, one in small letters": sized(LENGTH, b"content-length: 5\r\n"),
    "two unequal lengths in one": sized(b"Content-Length: 5, 26\r\n"),
    "a length that is right in 64 bits": sized(b"Content-Length: 18446744073709551642\r\n"),
    "a length with a point": sized(b"Content-Length: 26.0\r\n"),
    "a length with an underscore": sized(b"Content-Length: 2_6\r\n"),
    "a length in Arabic digits": sized("Content-Length: ٢٦\r\n".encode()),
    "a length in raised digits": sized(b"Content-Length: \xb2\xb6\r\n"),
    "a length before a zero byte": sized(b"Content-Length: 26\x00\r\n"),
    "a length on a line of its own": sized(b"Content-Length:\r\n 26\r\n"),
    "a length in a folded line": sized(b"X-A: a\r\n Content-Length: 26\r\n"),
    # 5.1: nothing stands between a header's name and its colon.
    "a tab before the colon": sized(b"Content-Length\t: 26\r\n"),
    "a hard blank before the colon": sized(b"Content-Length\xa0: 26\r\n"),
    "a blank in a header's name": sized(b"Content Length: 26\r\n"),
    "a blank before the colon of the host": get(host=b"Host : here\r\n"),
    # 5.2 and 2.2: no folded header, and no blank before the first one.
    "a header that is folded with a tab": get(b"X-A: a\r\n\tb\r\n"),
    "a first header that is folded": get(host=b" Host: here\r\n"),
    # 6.5.1 of RFC 9110: what follows the body cannot say how long it was.
    "a length in the trailer": chunked(trailer=b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN),
    "an encoding in the trailer": chunked(trailer=CHUNKED + b"\r\n" + HIDDEN),
    "a folded trailer": chunked(trailer=b"X-A: a\r\n b\r\n\r\n"),
    "a trailer that ends with a line feed": chunked(trailer=b"X-A: a\n\r\n"),
    "a request for a trailer": chunked(trailer=HIDDEN),
    # 3: the request line's parts.
    "a blank behind the version": get(first=b"GET /health HTTP/1.1 "),
    "tabs in the request line": get(first=b"GET\t/health\tHTTP/1.1"),
    "a protocol in small letters": get(first=b"GET /health http/1.1"),
    "a version of three digits": get(first=b"GET /health HTTP/1.10"),
    "a path without a slash": get(first=b"GET health HTTP/1.1"),
    "a tunnel": get(first=b"CONNECT elsewhere:443 HTTP/1.1", host=b"Host: elsewhere\r\n"),
}

TAKEN = {
    "an empty line first": b"\r\n" + sized(LENGTH),
    "two blanks in the request line": get(first=b"GET  /health  HTTP/1.1"),
    "an address with another host": post(LENGTH, body=BODY, first=b"POST http://elsewhere/predict HTTP/1.1"),
    "a request for a body": get(b"Content-Length: %d\r\n" % len(HIDDEN)) + HIDDEN,
    "a request for a chunk": get(CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN),
    "a length with a zero before it": sized(b"Content-Length: 026\r\n"),
    "a length between blanks and tabs": sized(b"Content-Length: \t 26 \t \r\n"),
    "a length with twenty zeros before it": sized(b"Content-Length: " + b"0" * 20 + b"26\r\n"),
    "a length that is named as the connection's": sized(LENGTH, b"Connection: Content-Length\r\n"),
    "an encoding that is named as the connection's": encoded(CHUNKED, b"Connection: Transfer-Encoding\r\n"),
    "an encoding with an underscore, which is none": sized(b"Transfer_Encoding: chunked\r\n", LENGTH),
    "chunked behind a tab": encoded(b"Transfer-Encoding:\tchunked\r\n"),
    "chunked in mixed letters": encoded(b"tRANSFER-eNCODING: cHuNkEd\r\n"),
    "chunked behind an empty element": encoded(b"Transfer-Encoding: ,chunked\r\n"),
    "a size with thirty zeros before it": chunked(size=b"0" * 30 + b"1a\r\n"),
    "an extension": chunked(size=b"1a;a=b\r\n"),
    "an extension in quotes": chunked(size=b'1a;a="0;b"\r\n'),
    "a trailer of no meaning": chunked(trailer=b"X-A: a\r\n\r\n"),
}

# Well framed and yet refused: it is its own end, and the connection may go on.
FAULTY = {
    "a host that is a path": get(host=b"Host: here/there\r\n"),
    "two hosts in one": get(host=b"Host: here, there\r\n"),
    "a host with a user": get(host=b"Host: user@here\r\n"),
    "a host with a blank": get(host=b"Host: he re\r\n"),
    "no host": get(host=b""),
    "an empty host": get(host=b"Host: \r\n"),
    "two hosts": get(b"Host: there\r\n"),
    "two equal hosts": get(b"Host: here\r\n"),
    "a request behind the JSON": post(b"Content-Length: %d\r\n" % len(BODY + HIDDEN), body=BODY + HIDDEN),
}

# The connection's last, whatever comes behind it.
ENDS = {
    "chunked in HTTP/1.0": post(
        CHUNKED,
        b"Connection: keep-alive\r\n",
        body=b"1a\r\n" + BODY + b"\r\n0\r\n\r\n",
        first=b"POST /predict HTTP/1.0",
    ),
    "HTTP/0.9": get(first=b"GET /health HTTP/0.9"),
    "a request that says so": sized(LENGTH, b"Connection: close\r\n"),
}


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "_HEAD_S", 0.3)
        with serving(Echo, Http(body_timeout_s=0.3)) as running:
            yield running


def answers(served, data: bytes) -> tuple[list[int], bytes]:
    """Send *data* and an honest request in one piece; the statuses of all that comes back until it is closed."""
    received = b""
    with served.connection(10) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data + LAST)
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part

    assert b'"ready"' not in received, "what was hidden is answered"
    assert b"Traceback" not in received
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)], received


@pytest.mark.parametrize("name", REFUSED)
def test_what_others_could_read_otherwise_is_refused_once_and_closes_the_connection(served, name):
    statuses, received = answers(served, REFUSED[name])

    assert statuses == [400]
    assert b'"code": "invalid_http"' in received


@pytest.mark.parametrize("name", TAKEN)
def test_what_has_one_reading_is_one_request_and_the_next_begins_where_it_ends(served, name):
    statuses, received = answers(served, TAKEN[name])

    assert statuses == [200, 200]
    assert received.endswith(b'{"status":"ok"}')
    assert b'"text":"a"' in received or received.count(b'{"status":"ok"}') == 2


@pytest.mark.parametrize("name", FAULTY)
def test_what_is_well_framed_and_refused_is_one_request_and_the_next_begins_where_it_ends(served, name):
    statuses, received = answers(served, FAULTY[name])

    assert statuses == [400, 200]
    assert received.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("name", ENDS)
def test_what_must_end_the_connection_is_answered_and_nothing_behind_it(served, name):
    statuses, _ = answers(served, ENDS[name])

    assert statuses == [200]


@pytest.mark.parametrize("size", [b"8000000000000000", b"ffffffffffffffff"])
def test_a_chunk_of_the_largest_size_swallows_what_follows_and_is_not_waited_for(served, size):
    statuses, received = answers(served, chunked(size=size + b"\r\n"))

    assert statuses == [408]
    assert b'"code": "body_timeout"' in received
