"""HTTP/1.1 as bytes (RFC 9112): the head of a request, the parts of its body, and the head of a response. Nothing here does I/O.

Requests that the grammar does not allow are refused, also where other servers guess: a line that ends without CR, whitespace before a colon,
a folded field, a length beside a transfer coding. Two components that read such a request differently can be played off against each other.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

Pairs = list[tuple[bytes, bytes]]
"""Header fields in order, with lower-case names in requests."""
RequestLine = tuple[str, bytes, bytes, bool]
"""The method, the path or `*`, and the query, not decoded, and whether the client speaks HTTP/1.0."""

MAX_HEAD = 400 * 1024
"""The most bytes in the head of a request that are read at all."""
MAX_FIELDS = 100
"""The most header fields of a request."""
_MAX_LINE = 4096
"""The most bytes in the line that begins a chunk, with its extensions."""
_MAX_TRAILERS = 16 * 1024
"""The most bytes of trailer fields."""
_END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]++) HTTP/1\.([01])\r\n" % _TOKEN)
_FIELDS = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*+)\r\n|[\s\S]+" % _TOKEN)
"""A field with its line end, or all that is left, without a name."""
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*+(?:;[\t\x20-\x7e\x80-\xff]*+)?")
_TRAILER = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*+" % _TOKEN)
_EMPTY_LINES = re.compile(rb"(?:\r\n)++")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class BadRequest(Exception):
    """The bytes are not a request, or not one that is read.

    Attributes:
        status: the HTTP status of the answer, after which the connection has to close.
    """

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


def without_empty_lines(data: bytes | bytearray) -> bytes:
    """Return what follows the empty lines that `data` begins with (RFC 9112, section 2.2)."""
    lines = _EMPTY_LINES.match(data)
    return bytes(data if lines is None else data[lines.end() :])


def find_end(data: bytes | bytearray, searched: int = 0) -> int:
    """Return where the head that `data` begins with ends, and -1 if it is incomplete.

    Args:
        searched: the bytes that an earlier call has seen, for which it returned -1.

    Raises:
        BadRequest: if it is too large (431), or can be no head (400).
    """
    end = data.find(_END, max(searched - 3, 0))
    if (end if end >= 0 else len(data)) > MAX_HEAD:
        raise BadRequest(f"The head of the request is longer than {MAX_HEAD} bytes.", 431)
    if end < 0 and _BARE_LF.search(data, searched):
        raise BadRequest("A line of the head ends without CR LF.")
    return end


def parse_line(line: bytes) -> RequestLine:
    """Return the method, path, and query of a request line, and whether it is one of HTTP/1.0. The line ends with its line end.

    Raises:
        BadRequest: if it is malformed (400).
    """
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise BadRequest("The request line is malformed, or not of HTTP/1.1 or HTTP/1.0.")
    method, target, minor = found.groups()
    if not target.startswith(b"/"):
        target = _origin_form(target)
    if b"#" in target:
        raise BadRequest("The target has a fragment.")
    path, _, query = target.partition(b"?")
    return method.decode(), path, query, minor == b"0"


def parse_fields(text: bytes) -> Pairs:
    """Return the header fields in the lines between the request line and the empty line.

    Raises:
        BadRequest: if one is malformed (400), or there are too many (431).
    """
    pairs = [(name.lower(), value.strip(b" \t")) for name, value in _FIELDS.findall(text)]
    if pairs and not pairs[-1][0]:
        raise BadRequest("A header field is malformed.")
    if len(pairs) > MAX_FIELDS:
        raise BadRequest(f"The request has more than {MAX_FIELDS} header fields.", 431)
    return pairs


def _origin_form(target: bytes) -> bytes:
    """Return the path and query of a target that begins with neither (RFC 9112, section 3.2)."""
    if target == b"*":
        return target
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        raise BadRequest("Expected a target that begins with a slash, or an http URL.")
    rest = target[absolute.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest


class Body:
    """A body whose length the head gives.

    Attributes:
        is_complete: whether all of it has been read.
    """

    __slots__ = ("_left", "is_complete")

    def __init__(self, length: int) -> None:
        self._left = length
        self.is_complete = length == 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of the body that `data` begins with, and what comes after the body.

        Raises:
            BadRequest: if it is malformed.
        """
        if len(data) < self._left:
            self._left -= len(data)
            return data, b""
        left, self._left = self._left, 0
        self.is_complete = True
        return data[:left], data[left:]


class EndlessBody(Body):
    """All that follows a head that cannot be understood."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(-1)

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return all of it."""
        return data, b""


class ChunkedBody(Body):
    """A body in chunks (RFC 9112, section 7.1). Extensions and trailer fields are read and dropped."""

    __slots__ = ("_line", "_state", "_trailers")

    def __init__(self) -> None:
        super().__init__(-1)
        self._left = 0
        self._line = b""
        self._trailers = 0
        self._state = "size"

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of the body that `data` carries, and what comes after the body."""
        parts: list[bytes] = []
        at = 0
        while at < len(data) and not self.is_complete:
            if self._state == "data":
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if not self._left:
                    self._state = "end of data"
                continue
            end = data.find(b"\n", at)
            line = self._line + (data[at:] if end < 0 else data[at : end + 1])
            at = len(data) if end < 0 else end + 1
            if len(line) > _MAX_LINE:
                raise BadRequest("A line between chunks is too long.")
            if end < 0:
                self._line = line
                break
            self._line = b""
            if not line.endswith(b"\r\n"):
                raise BadRequest("A line between chunks ends without CR LF.")
            self._read_line(line[:-2])
        return parts[0] if len(parts) == 1 else b"".join(parts), data[at:]

    def _read_line(self, line: bytes) -> None:
        if self._state == "size":
            size = _CHUNK.fullmatch(line)
            if size is None:
                raise BadRequest("The size of a chunk is malformed.")
            self._left = int(size[1], 16)
            self._state = "data" if self._left else "trailers"
        elif self._state == "end of data":
            if line:
                raise BadRequest("A chunk is longer than its size.")
            self._state = "size"
        elif not line:
            self.is_complete = True
        else:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS or not _TRAILER.fullmatch(line):
                raise BadRequest("The trailer fields are malformed, or too large.")


def response_head(status: int, pairs: Iterable[tuple[bytes, bytes]], more: bytes = b"") -> bytes:
    """Return the head of a response.

    Args:
        pairs: header fields, whose values contain no line end.
        more: further header fields as bytes, each with its line end.
    """
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return line + b"".join([b"%b: %b\r\n" % pair for pair in pairs]) + more + b"\r\n"
