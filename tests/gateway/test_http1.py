"""The bytes of HTTP/1.1: heads and bodies, and those that are refused because somebody could read them in another way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http1 import MAX_FIELDS, MAX_HEAD, BadRequest, Body, ChunkedBody, find_end, parse_fields, parse_line, response_head

LINE = b"GET /a%2Fb?c=d HTTP/1.1\r\n"


def test_a_head_is_read() -> None:
    assert parse_line(LINE) == ("GET", b"/a%2Fb", b"c=d", False)
    assert parse_line(b"M-SEARCH * HTTP/1.0\r\n") == ("M-SEARCH", b"*", b"", True)
    assert parse_fields(b"Host: a\r\nX-A:\t b  c \r\nx-a:\r\n") == [(b"host", b"a"), (b"x-a", b"b  c"), (b"x-a", b"")]
    assert parse_fields(b"") == []


@pytest.mark.parametrize(
    ("target", "path"),
    [(b"http://a/b?c", b"/b"), (b"HTTPS://a:1", b"/"), (b"http://a?c", b"/"), (b"/b//", b"/b//"), (b"/\xff", b"/\xff")],
)
def test_a_target_may_be_a_url(target: bytes, path: bytes) -> None:
    assert parse_line(b"GET " + target + b" HTTP/1.1\r\n")[1] == path


@pytest.mark.parametrize(
    "line",
    [
        b"GET /a HTTP/2.0\r\n",
        b"GET /a HTTP/1.2\r\n",
        b"GET /a http/1.1\r\n",
        b"GET /a\r\n",
        b"GET  /a HTTP/1.1\r\n",
        b"GET /a  HTTP/1.1\r\n",
        b"GET /a b HTTP/1.1\r\n",
        b"GET /a\tHTTP/1.1\r\n",
        b"GET /a HTTP/1.1 \r\n",
        b" GET /a HTTP/1.1\r\n",
        b"GE(T /a HTTP/1.1\r\n",
        b"GET a HTTP/1.1\r\n",
        b"GET /a#b HTTP/1.1\r\n",
        b"GET http:///a HTTP/1.1\r\n",
        b"GET ftp://a/ HTTP/1.1\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n",
        b"\x16\x03\x01\r\n",
        b"\r\n",
    ],
)
def test_a_malformed_request_line_is_refused(line: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_line(line)


@pytest.mark.parametrize(
    "field",
    [
        b"A : b\r\n",
        b"A\r\n",
        b": b\r\n",
        b" A: b\r\n",
        b"A: b\r\n c\r\n",
        b"A: b\x00\r\n",
        b"A: b\rc\r\n",
        b"A: b\n",
        b"A: b\nC: d\r\n",
        b"A\x80: b\r\n",
        b"A: \x7f\r\n",
    ],
)
def test_a_malformed_field_is_refused(field: bytes) -> None:
    for before, after in ((b"", b""), (b"Host: a\r\n", b""), (b"", b"Host: a\r\n")):
        with pytest.raises(BadRequest):
            parse_fields(before + field + after)


def test_too_many_fields_are_refused() -> None:
    assert len(parse_fields(b"A: b\r\n" * MAX_FIELDS)) == MAX_FIELDS
    with pytest.raises(BadRequest) as refused:
        parse_fields(b"A: b\r\n" * (MAX_FIELDS + 1))
    assert refused.value.status == 431


def test_the_end_of_a_head_is_found_in_pieces() -> None:
    text = LINE + b"Host: a\r\n\r\nrest"
    found = [find_end(text[:size], size - 1) for size in range(1, len(text))]
    assert set(found) == {-1, len(text) - 8}
    assert found.index(len(text) - 8) == len(text) - 5


def test_a_head_that_cannot_end_is_refused() -> None:
    for text in (b"GET / HTTP/1.1\nHost: a\n\n", b"\n"):
        with pytest.raises(BadRequest):
            find_end(text)
    for text in (LINE + b"A: " + b"b" * MAX_HEAD, LINE + b"A: " + b"b" * MAX_HEAD + b"\r\n\r\n"):
        with pytest.raises(BadRequest) as refused:
            find_end(text)
        assert refused.value.status == 431


@settings(max_examples=30)
@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.lists(st.integers(1, 9), min_size=1), st.binary(max_size=5))
def test_a_body_is_read_in_any_pieces(chunks: list[bytes], sizes: list[int], rest: bytes) -> None:
    whole = b"".join(chunks)
    chunked = b"".join(b"%X;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nA: b\r\n\r\n"
    for body, text in ((Body(len(whole)), whole), (ChunkedBody(), chunked)):
        text += rest
        received = b""
        at = turn = 0
        while not body.is_complete:
            size = sizes[turn % len(sizes)]
            part, left = body.feed(text[at : at + size])
            received += part
            at += min(size, len(text) - at) - len(left)
            turn += 1
        assert (received, text[at:]) == (whole, rest)


@pytest.mark.parametrize(
    "text",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x1\r\n",
        b"+1\r\n",
        b" 1\r\n",
        b"1_0\r\n",
        b"1\n",
        b"1" * 16 + b"\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1\r\na1\r\n",
        b"1;" + b"a" * 5000,
        b"1;\x00\r\n",
        b"0\r\n a\r\n\r\n",
        b"0\r\nA: b\r\n" + b"A: b\r\n" * 5000,
    ],
)
def test_a_malformed_chunk_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest):
        ChunkedBody().feed(text)


def test_a_response_begins_with_its_status_and_fields() -> None:
    assert response_head(200, [(b"a", b"b")], b"c: d\r\n") == b"HTTP/1.1 200 OK\r\na: b\r\nc: d\r\n\r\n"
    assert response_head(599, []) == b"HTTP/1.1 599 \r\n\r\n"
