"""Problem documents (RFC 9457), the form in which a REST client receives every error."""

from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from runtime import Forbidden, ServiceError, Unauthenticated
from runtime.contract.errors import ErrorData
from runtime.identity import identity
from runtime.repeats import Repeats
from runtime.telemetry import Refused, log_refusal

Headers = list[tuple[bytes, bytes]]

_RETRYABLE = (408, 429, 503)
"""The statuses of the gateway's own problems after which the same request may succeed later."""
_LONGEST_WAIT = 10**6
"""Seconds; a longer Retry-After of a service is left out."""
_UNAUTHENTICATED = "Expected a valid access token in `Authorization`."
"""What a client learns about a refused token. Which check it failed is only in the log, because it would help to forge one."""


class Refusable(Protocol):
    """A request that may be refused.

    Attributes:
        source: the address of the client, or its network.
    """

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def source(self) -> str: ...


class Problem(Exception):
    """An error that the gateway itself raises.

    Args:
        status: the HTTP status of the response.
        code: the stable, machine-readable name of the problem.
        detail: the explanation for the client.
        headers: header fields to add to the response.

    Attributes:
        retryable: whether the same request may succeed later.
    """

    def __init__(self, status: int, code: str, detail: str, headers: Headers | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or []
        self.retryable = status in _RETRYABLE


def problem_response(problem: Problem, request_id: str) -> tuple[int, Headers, bytes]:
    """Return the status, headers, and body of the response to a problem that the gateway raised."""
    return _response(
        problem.status,
        "callboard",
        problem.code,
        HTTPStatus(problem.status).phrase,
        request_id,
        {"detail": problem.detail, "retryable": problem.retryable},
        problem.headers,
    )


def error_response(error: ServiceError, request_id: str, *, repeatable: bool = True) -> tuple[int, Headers, bytes]:
    """Return the status, headers, and body of the response to an error of a service or of the runtime.

    Args:
        error: the error.
        request_id: the id of the request.
        repeatable: whether the request may be made again although it may have run: it is idempotent, or `once` with a key.
    """
    data = error.data()
    fields: dict[str, Any] = msgspec.json.decode(data.fields)
    headers: Headers = []
    if data.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    seconds = _retry_after(fields.get("retry_after"), data.status)
    if seconds is not None:
        headers.append((b"retry-after", str(seconds).encode()))
    extra = _visible_fields(data, fields) if data.contract == "callboard" else fields
    if data.contract == "callboard" and data.code == Unauthenticated.code:
        extra = {"detail": _UNAUTHENTICATED}
    fate = {"retryable": data.retryable}
    if data.maybe_delivered:
        fate = {"retryable": data.retryable and repeatable, "maybe_delivered": True}
    return _response(data.status, data.contract, data.code, data.title, request_id, extra | fate, headers)


def _retry_after(field: object, status: int) -> int | None:
    """Return the seconds for a Retry-After field. The field of an error counts only if a client can read it as such."""
    if isinstance(field, int) and not isinstance(field, bool) and 0 <= field <= _LONGEST_WAIT:
        return field
    return 1 if status == 503 else None


def log_if_refused(repeats: Repeats, error: ServiceError, request: "Refusable", request_id: str, user: str | None = None) -> None:
    """Log an error that refuses a login, a token, or an authorization, with the reason that the client does not learn.

    Args:
        repeats: counts the lines.
        error: the error.
        request: the request that is refused.
        request_id: the id of the request.
        user: the user whose valid access token came with the request.
    """
    data = error.data()
    if data.contract == "callboard" and data.code in (Unauthenticated.code, Forbidden.code):
        what: Refused = "token" if data.code == Unauthenticated.code else "authorization"
    elif data.contract == identity.name and data.status in (401, 403, 429):
        what = "token" if data.code == "session-ended" else "login"  # the refresh token of a session
    else:
        return
    reason = getattr(error, "detail", "") or data.detail or data.code
    log_refusal(
        repeats,
        what,
        reason,
        service="gateway",
        method=request.method,
        path=request.path[:200],
        client=request.source,
        user=user if what == "authorization" else None,
        message=request_id,
    )


def _visible_fields(data: ErrorData, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a runtime error that a client may see. The division into services stays hidden."""
    shown = {"incident": fields["incident"]} if "incident" in fields else {}
    if data.code == "invalid":
        shown["errors"] = fields["violations"]
    return shown | ({"detail": data.detail} if data.detail else {})


def _response(
    status: int, contract: str, code: str, title: str, request_id: str, extra: dict[str, Any], headers: Headers
) -> tuple[int, Headers, bytes]:
    body = {"type": f"urn:callboard:{contract}:{code}", "title": title, "status": status, "code": code, "request_id": request_id}
    encoded = msgspec.json.encode({**extra, **body})
    return status, [(b"content-type", b"application/problem+json"), *headers], encoded
