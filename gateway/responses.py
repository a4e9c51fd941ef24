"""Whole responses, with security headers and compression."""

import gzip

from gateway.exchange import Exchange
from gateway.problems import Headers, Response

_COMPRESS_FROM = 1024
"""Bytes from which a body is worth compressing."""
SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_USUAL = 2
"""The number of header fields of most responses: a media type and an id, which are none of those."""
_FIRST = (b"content-type", b"x-request-id", b"allow")
_SECURITY_LINES = b"".join(b"%b: %b\r\n" % pair for pair in SECURITY)


def respond(exchange: Exchange, response: Response, cors: Headers) -> None:
    """Send a response with security and CORS headers, compressed if the client accepts gzip."""
    status, headers, body = _compressed(exchange, response)
    if len(headers) > _USUAL or headers[0][0] not in _FIRST:
        exchange.respond(status, with_security(headers) + cors, body)
    else:
        exchange.respond(status, headers + cors if cors else headers, body, _SECURITY_LINES)


def respond_page(exchange: Exchange, response: Response, cors: Headers) -> None:
    """Send the response of a page in the same way. Security headers that it has take precedence."""
    status, headers, body = _compressed(exchange, response)
    exchange.respond(status, with_security(headers) + cors, body)


def with_security(headers: Headers) -> Headers:
    """Return header fields with the security headers that are not among them."""
    present = {name for name, _ in headers}
    return headers + [pair for pair in SECURITY if pair[0] not in present]


def _compressed(exchange: Exchange, response: Response) -> Response:
    status, headers, body = response
    if (
        len(body) < _COMPRESS_FROM
        or not _accepts_gzip(exchange.fields.get(b"accept-encoding", b""))
        or not _compressible(headers)
    ):
        return response
    return status, [*headers, (b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")], gzip.compress(body, 5)


def _accepts_gzip(accept_encoding: bytes) -> bool:
    """Return whether an Accept-Encoding field (RFC 9110, section 12.5.3) lists gzip with a weight above zero."""
    for part in accept_encoding.split(b","):
        coding, _, weight = part.replace(b" ", b"").partition(b";q=")
        if coding.lower() == b"gzip":
            return weight.strip(b"0.") != b"" or weight == b""
    return False


def _compressible(headers: Headers) -> bool:
    content_types = [value for name, value in headers if name == b"content-type"]
    encoded = any(name == b"content-encoding" for name, _ in headers)
    return (
        not encoded
        and bool(content_types)
        and content_types[0].startswith((b"application/json", b"application/problem+json", b"text/", b"image/svg"))
    )
