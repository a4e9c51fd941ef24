"""Problem documents (RFC 9457): how every error looks to a REST client."""

from http import HTTPStatus
from typing import Any

import msgspec

from runtime import ServiceError
from runtime.contract.errors import ErrorData

Headers = list[tuple[bytes, bytes]]


class Problem(Exception):
    """An error that the gateway itself answers with: a status and what it means."""

    def __init__(self, status: int, code: str, detail: str, headers: Headers | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or []


def of_problem(problem: Problem, request_id: str) -> tuple[int, Headers, bytes]:
    """The answer to a problem of the gateway's own."""
    return _answer(
        problem.status,
        "callboard",
        problem.code,
        HTTPStatus(problem.status).phrase,
        request_id,
        {"detail": problem.detail},
        problem.headers,
    )


def of_error(error: ServiceError, request_id: str) -> tuple[int, Headers, bytes]:
    """The answer to an error of a service or of the runtime."""
    data = error.data()
    fields: dict[str, Any] = msgspec.json.decode(data.fields)
    headers: Headers = []
    if data.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if "retry_after" in fields or data.status == 503:
        headers.append((b"retry-after", str(fields.get("retry_after", 1)).encode()))
    extra = _own(data, fields) if data.contract == "callboard" else fields
    return _answer(data.status, data.contract, data.code, data.title, request_id, extra, headers)


def _own(data: ErrorData, fields: dict[str, Any]) -> dict[str, Any]:
    """What of the runtime's errors a client may see: not how the system is cut."""
    shown = {"incident": fields["incident"]} if "incident" in fields else {}
    if data.code == "invalid":
        shown["errors"] = fields["violations"]
    return shown | ({"detail": data.detail} if data.detail else {})


def _answer(
    status: int, contract: str, code: str, title: str, request_id: str, extra: dict[str, Any], headers: Headers
) -> tuple[int, Headers, bytes]:
    body = {"type": f"urn:callboard:{contract}:{code}", "title": title, "status": status, "code": code, "request_id": request_id}
    encoded = msgspec.json.encode({**extra, **body})
    return status, [(b"content-type", b"application/problem+json"), *headers], encoded
