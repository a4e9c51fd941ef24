"""HTTP/1.1 messages as they are written and read (RFC 9112), without any input or output.

This module checks the heads that it writes. llhttp, the parser of Node.js, checks the syntax of what is read.
"""

from collections.abc import Mapping
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

_MOST_FRAMING = 64 * 1024
"""Bytes of an answer that are not its body, besides as many as its body has: its head, heads before it, chunk sizes, and trailers."""
_PRINTABLE = bytes(range(0x20, 0x7F))
_MOST_NAMES = 256
"""The number of field names that are remembered in lower case, if they are not longer than `_LONGEST_NAME`."""
_LONGEST_NAME = 64
_names: dict[bytes, str] = {}


class Unreadable(ValueError):
    """Raised if what came is not an answer, or is too large."""


class Headers(dict[str, str]):
    """The header fields of a message, by their lower-case names: the first of each name.

    Attributes:
        more: the fields whose name came before.
    """

    __slots__ = ("more",)

    def __init__(self, *args: Mapping[str, str]) -> None:
        super().__init__(*args)
        self.more: list[tuple[str, str]] = []

    def get_all(self, name: str) -> list[str]:
        """Return the values of all fields of a name, in their order."""
        first = [self[name]] if name in self else []
        return first + [value for other, value in self.more if other == name]


class HeaderReader:
    """Collects the header fields of one message after the other. The parser calls `add` for each field."""

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields = Headers()

    def add(self, name: bytes, value: bytes) -> None:
        """Add a field. White space around its value is not part of it (RFC 9112, section 5.1)."""
        fields, known = self._fields, _names.get(name) or _lower(name)
        text = value.strip(b" \t").decode("latin-1")
        if known in fields:
            fields.more.append((known, text))
        else:
            fields[known] = text

    def take(self) -> Headers:
        """Return the fields that were added since the last call."""
        taken, self._fields = self._fields, Headers()
        return taken


def _lower(name: bytes) -> str:
    """Return the name of a field in lower case."""
    known = name.decode("latin-1").lower()
    if len(name) <= _LONGEST_NAME:
        if len(_names) >= _MOST_NAMES:
            _names.clear()
        _names[name] = known
    return known


class Answer(NamedTuple):
    """The answer to a request."""

    status: int
    fields: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """The media type, without parameters (RFC 9110, section 8.3.1)."""
        return self.fields.get("content-type", "").partition(";")[0].strip().lower()


def start(method: str, path: str, fields: Mapping[str, str]) -> bytes:
    """Return the first lines of a request: the request line and some of its fields (RFC 9112, section 3). Raises like `lines`."""
    return _checked(f"{method} {path} HTTP/1.1") + lines(fields)


def lines(fields: Mapping[str, str]) -> bytes:
    """Return header fields, one a line (RFC 9112, section 5).

    Raises:
        ValueError: if a name or a value has a character that is not printable ASCII. Line ends there would be further fields.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    written = text.encode(errors="replace")
    if not text.isascii() or written.translate(None, _PRINTABLE) != b"\r\n" * len(fields):
        for name, value in fields.items():
            _checked(f"{name}: {value}")
    return written


def _checked(line: str) -> bytes:
    if not line.isprintable() or not line.isascii():
        raise ValueError(f"{line!r:.60}: expected printable ASCII characters")
    return line.encode() + b"\r\n"


def with_length(head: bytes, body: bytes | None) -> bytes:
    """Return a complete head: its first lines, and the length of the body, if it has one (RFC 9112, section 6.2)."""
    return head + b"\r\n" if body is None else b"%bcontent-length: %d\r\n\r\n" % (head, len(body))


class AnswerReader:
    """Reads the answers that arrive on one connection, one after the other.

    Informational answers (1xx) are skipped (RFC 9110, section 15.2). The methods named `on_…` are called by the parser.

    Args:
        max_body: the size of the largest body, in bytes.

    Attributes:
        reusable: whether the connection may be used for another request (RFC 9112, section 9.3).
    """

    __slots__ = (
        "_answer", "_fields", "_headers", "_max_body", "_parser", "_parts", "_received", "_size", "on_header", "reusable"
    )  # fmt: skip

    def __init__(self, max_body: int) -> None:
        self.reusable = True
        self._max_body = max_body
        self._headers = HeaderReader()
        self.on_header = self._headers.add
        self._parser = HttpResponseParser(self)
        self._answer: Answer | None = None
        self._begin()

    def _begin(self) -> None:
        self._fields: Headers | None = None
        self._parts: list[bytes] = []
        self._size = self._received = 0

    def feed(self, data: bytes) -> Answer | None:
        """Take bytes that have arrived. Return the answer if they complete one.

        Raises:
            Unreadable: if they cannot be part of an answer.
        """
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.reusable = False
            if self._answer is None:
                cause = error.__context__
                raise cause if isinstance(cause, Unreadable) else Unreadable(f"it is not HTTP: {error}") from None
        answer = self._answer
        if answer is not None:
            self._answer = None
            self._begin()
        elif self._received - 2 * self._size > _MOST_FRAMING:
            raise Unreadable(f"its head, or the framing of its body, has more than {_MOST_FRAMING} bytes")
        return answer

    def end(self) -> Answer | None:
        """Take the end of the connection. Return the answer if this completes one (RFC 9112, section 6.3, item 8)."""
        fields = self._fields
        if fields is None or "content-length" in fields or "transfer-encoding" in fields:
            return None
        return Answer(self._parser.get_status_code(), fields, b"".join(self._parts))

    def on_message_begin(self) -> None:
        if self._answer is not None:
            raise Unreadable("there is something behind the answer")

    def on_headers_complete(self) -> None:
        self._fields = self._headers.take()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._max_body:
            raise Unreadable(f"it has more than {self._max_body} bytes")
        self._parts.append(body)

    def on_message_complete(self) -> None:
        fields, status = self._fields, self._parser.get_status_code()
        if fields is None or status < 200:
            self._fields = None
            return
        self._headers.take()  # trailers (RFC 9112, section 7.1.2)
        self._answer = Answer(status, fields, b"".join(self._parts))
        self.reusable = self._parser.should_keep_alive()
