"""Requests as they are written, and answers as they are read, however the network cuts them into pieces."""

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transports.http import messages
from transports.http.messages import Answer, AnswerReader, HeaderReader, Unreadable, lines, start, with_length

VISIBLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E))


class ParsedRequest:
    """A request as another parser of HTTP reads it."""

    def __init__(self, data: bytes) -> None:
        self.url, self.fields, self.body = b"", dict[str, str](), b""
        httptools.HttpRequestParser(self).feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode()] = value.decode().strip()  # spaces around a value are not part of it

    def on_body(self, body: bytes) -> None:
        self.body += body


@given(values=st.dictionaries(st.sampled_from(["a", "b-c", "callboard-id"]), VISIBLE), body=st.binary(max_size=50))
def test_a_request_arrives_with_the_fields_and_the_body_that_it_was_given(values: dict[str, str], body: bytes) -> None:
    head = with_length(start("POST", "/echo/Say", {"host": "echo:1"}) + lines(values), body)
    parsed = ParsedRequest(head + body)
    assert (parsed.url, parsed.body) == (b"/echo/Say", body)
    assert parsed.fields == {
        "host": "echo:1",
        "content-length": str(len(body)),
        **{name: value.strip() for name, value in values.items()},
    }


@given(
    text=st.text(st.characters(exclude_categories=[]), min_size=1).filter(
        lambda text: not (text.isascii() and text.isprintable())
    )
)
def test_a_character_that_is_not_printable_ascii_is_refused_everywhere(text: str) -> None:
    for fields in ({"x": text}, {text: "x"}, {"x": f"a{text}b"}):
        with pytest.raises(ValueError, match="expected printable ASCII"):
            lines(fields)
    with pytest.raises(ValueError, match="expected printable ASCII"):
        start("GET", f"/{text}", {})


@pytest.mark.parametrize("text", ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "a\tb", "ü", "\x7f", "\u2028"])
def test_a_value_cannot_add_a_field(text: str) -> None:
    with pytest.raises(ValueError, match="expected printable ASCII"):
        lines({"x": text})


def chunked(parts: list[bytes], trailer: bytes) -> bytes:
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(part), part) for part in parts if part) + b"0\r\n" + trailer + b"\r\n"


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Return the bytes of a few answers on one connection, and the statuses and bodies in them."""
    data, expected = b"", list[tuple[int, bytes]]()
    for _ in range(draw(st.integers(1, 3))):
        data += draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"]))
        parts = draw(st.lists(st.binary(max_size=20), max_size=4))
        status = draw(st.sampled_from([200, 404, 503, 204]))
        head = b"HTTP/1.1 %d x\r\nCallboard-Node: n%d\r\n" % (status, len(expected))
        if status == 204:
            data += head + b"\r\n"
            expected.append((204, b""))
            continue
        if draw(st.booleans()):
            trailer = draw(st.sampled_from([b"", b"callboard-node: forged\r\n", b"a: b\r\nc: d\r\n"]))
            data += head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(parts, trailer)
        else:
            data += head + b"content-length: %d\r\n\r\n" % len(b"".join(parts)) + b"".join(parts)
        expected.append((status, b"".join(parts)))
    return data, expected


@settings(max_examples=60)
@given(stream=streams())
def test_answers_are_read_byte_by_byte(stream: tuple[bytes, list[tuple[int, bytes]]]) -> None:
    text, expected = stream
    reader = AnswerReader(1000)
    read = [reader.feed(text[at : at + 1]) for at in range(len(text))]
    found = [answer for answer in read if answer is not None]
    assert [(answer.status, answer.body) for answer in found] == expected
    assert [answer.fields["callboard-node"] for answer in found] == [f"n{number}" for number in range(len(found))]
    assert reader.reusable


@given(body=st.binary(max_size=300), cut=st.integers(0, 400))
def test_an_answer_is_the_same_in_one_piece_and_in_two(body: bytes, cut: int) -> None:
    text = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    reader = AnswerReader(1000)
    answer = reader.feed(text[:cut]) if text[:cut] else None
    answer = answer or reader.feed(text[cut:])
    assert answer is not None
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize(
    "text",
    [
        b"garbage\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"HTTP/1.1 200 OK\r\nA b: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", b"HTTP/1.1 200 OK\r\na: b\n c\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + bytes(1001), b"HTTP/1.1 200 OK\r\na: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 70_000, b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
    ],
)  # fmt: skip
def test_what_is_not_an_answer_or_is_too_large_is_refused(text: bytes) -> None:
    with pytest.raises(Unreadable):
        AnswerReader(1000).feed(text)


@pytest.mark.parametrize(
    ("text", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", True), (b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nConnection: close\r\n\r\nx", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 200 OK\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxyz", False),
    ],
)  # fmt: skip
def test_a_connection_is_reusable_only_if_nothing_follows_the_answer(text: bytes, reusable: bool) -> None:
    reader = AnswerReader(1000)
    answer = reader.feed(text)
    assert answer is not None
    assert (answer.body, reader.reusable) == (b"x", reusable)


@pytest.mark.parametrize(
    ("text", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nabc", b"abc"), (b"HTTP/1.0 200 OK\r\nx: y\r\n\r\n", b""), (b"HTTP/1.1 200 OK\r\nx: y\r\n", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc", None), (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", None),
    ],
)  # fmt: skip
def test_the_end_of_the_connection_completes_only_an_answer_without_a_length(text: bytes, body: bytes | None) -> None:
    reader = AnswerReader(1000)
    assert reader.feed(text) is None
    answer = reader.end()
    assert (None if answer is None else answer.body) == body


def test_of_two_fields_the_first_counts_and_the_media_type_has_no_parameters() -> None:
    answer = AnswerReader(9).feed(
        b"HTTP/1.1 200 OK\r\nContent-Type: Text/X; a=b \r\ncontent-type: y\r\ncontent-length: 0\r\n\r\n"
    )
    assert answer is not None
    assert (answer.kind, answer.fields["content-type"]) == ("text/x", "Text/X; a=b")
    assert Answer(200, {}, b"").kind == ""


def test_long_and_many_field_names_are_not_kept_in_memory() -> None:
    reader = HeaderReader()
    for number in range(2000):
        reader.add(b"X-%d" % number + b"x" * 100, b"")
        reader.add(b"x-%d" % number, b"")
    assert len(reader.take()) == 4000
    assert len(messages._names) <= 256  # pyright: ignore[reportPrivateUsage]
    assert max(map(len, messages._names)) < 100  # pyright: ignore[reportPrivateUsage]
