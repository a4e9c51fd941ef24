"""The header fields of an HTTP request: which may occur once, and what HTTP/1.1 demands of them (RFC 9110 and RFC 9112).

Two components that read an ambiguous request differently can be played off against each other. So an ambiguous request is refused.
"""

import re
from functools import lru_cache

from gateway.http1 import Body, ChunkedBody
from gateway.problems import Headers, Problem

_SINGLE = frozenset(
    {
        b"access-control-request-method",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"last-event-id",
        b"origin",
    }
)
"""Fields that may occur once. The API understands no content coding, so two of them are never right either."""
_IGNORED_IF_TWICE = frozenset({b"traceparent", b"x-request-id"})
"""Fields that have no effect if they occur twice: the gateway then makes a new trace or id (W3C Trace Context, section 3.2)."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

_LENGTH = re.compile(rb"[0-9]{1,15}")


def read_fields(pairs: Headers, *, is_http_1_0: bool) -> dict[bytes, bytes]:
    """Return the header fields of a request by their lower-case names. The values of a list field that occurs repeatedly are joined.

    Raises:
        Problem: if the request is ambiguous or its `Host` is missing or malformed (400).
    """
    fields = dict(pairs)
    if len(fields) != len(pairs):
        _join(pairs, fields)
    host = fields.get(b"host")
    if not host:
        if not is_http_1_0:
            raise bad_request("HTTP/1.1 requires a Host field.")
    elif not _is_host(host):
        raise bad_request("The Host field is malformed.")
    if b"te" in fields and fields[b"te"].lower().count(b"chunked") > 1:
        raise bad_request("The TE field names chunked twice.")
    return fields


def read_framing(fields: dict[bytes, bytes], *, is_http_1_0: bool) -> Body | None:
    """Return what reads the body that the fields of a request announce, or None if they announce none (RFC 9112, section 6.3).

    Raises:
        Problem: if it is ambiguous where the body ends (400).
    """
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise bad_request("The only transfer coding that is understood is chunked, once.")
        if length is not None or is_http_1_0:
            raise bad_request("A transfer coding is for HTTP/1.1, and without Content-Length.")
        return ChunkedBody()
    if length is None:
        return None
    if not _LENGTH.fullmatch(length):
        raise bad_request("The Content-Length is not a number of at most 15 digits.")
    return Body(int(length))


@lru_cache(maxsize=64)
def _is_host(host: bytes) -> bool:
    return _HOST.fullmatch(host) is not None


def _join(pairs: Headers, fields: dict[bytes, bytes]) -> None:
    """Join the values of repeated fields.

    Raises:
        Problem: if a field that may occur once occurs repeatedly (400).
    """
    seen: dict[bytes, list[bytes]] = {}
    for name, value in pairs:
        seen.setdefault(name, []).append(value)
    for name, values in seen.items():
        if len(values) < 2:
            continue
        if name in _SINGLE:
            raise bad_request(f"The field {name.decode('latin-1')} occurs {len(values)} times: expected it once.")
        if name in _IGNORED_IF_TWICE:
            del fields[name]
        else:
            fields[name] = b", ".join(values)


def bad_request(detail: str, status: int = 400) -> Problem:
    """Return a problem after which the connection is closed: the rest of it may be read in two ways."""
    code = "bad-request" if status == 400 else "headers-too-large"
    return Problem(status, code, detail, [(b"connection", b"close")])
