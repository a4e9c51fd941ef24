"""Responses to errors: by default problem documents (RFC 9457), the form in which a REST client receives every error."""

import logging
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from gateway.errors import ErrorRenderer, ErrorReport
from runtime import Forbidden, ServiceError, Unauthenticated, UsageError, Violation
from runtime.contract.errors import ErrorData
from runtime.identity import identity
from runtime.repeats import Repeats
from runtime.telemetry import Refused, log_refusal, logger

Headers = list[tuple[bytes, bytes]]

Response = tuple[int, Headers, bytes]
"""The status, headers, and body of an HTTP response."""

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


class Problems:
    """Makes responses to errors, in the form that the project has chosen.

    Args:
        renderer: makes their bodies; None for problem documents.
        log: logs that it has failed.
    """

    def __init__(self, renderer: ErrorRenderer | None = None, log: logging.Logger | None = None) -> None:
        self._renderer = renderer
        self._log = log or logger("gateway")

    def of_problem(self, problem: Problem, request_id: str) -> Response:
        """Return the status, headers, and body of the response to a problem that the gateway raised."""
        title = HTTPStatus(problem.status).phrase
        report = ErrorReport(problem.status, problem.code, title, request_id, problem.retryable, problem.detail)
        return self._response(report, {"detail": problem.detail, "retryable": problem.retryable}, problem.headers)

    def of_error(self, error: ServiceError, request_id: str, *, repeatable: bool = True) -> Response:
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
        ours = data.contract == "callboard"
        extra = _visible_fields(data, fields) if ours else fields
        if ours and data.code == Unauthenticated.code:
            extra = {"detail": _UNAUTHENTICATED}
        fate = {"retryable": data.retryable}
        if data.maybe_delivered:
            fate = {"retryable": data.retryable and repeatable, "maybe_delivered": True}
        report = ErrorReport(
            data.status,
            data.code,
            data.title,
            request_id,
            fate["retryable"],
            str(extra.get("detail", "")) if ours else data.detail,
            data.contract,
            None if ours else fields,
            msgspec.convert(extra.get("errors", ()), tuple[Violation, ...]) if ours else (),
            data.maybe_delivered,
            str(extra.get("incident", "")) if ours else "",
        )
        return self._response(report, extra | fate, headers)

    def _response(self, report: ErrorReport, extra: dict[str, Any], headers: Headers) -> Response:
        if self._renderer is not None:
            try:
                rendered = self._renderer.render(report)
                body, media_type = msgspec.json.encode(rendered), self._renderer.media_type.encode()
                if not isinstance(rendered, msgspec.Struct):
                    raise UsageError(f"render returned {rendered!r}: expected a struct")
            except Exception:  # of the project's own code: the client gets the error nevertheless
                self._log.exception("%s has failed to render %s", type(self._renderer).__qualname__, report.code)
            else:
                return report.status, [(b"content-type", media_type), *headers], body
        document = {
            "type": f"urn:callboard:{report.contract}:{report.code}",
            "title": report.title,
            "status": report.status,
            "code": report.code,
            "request_id": report.request_id,
        }
        encoded = msgspec.json.encode({**extra, **document})
        return report.status, [(b"content-type", b"application/problem+json"), *headers], encoded


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
