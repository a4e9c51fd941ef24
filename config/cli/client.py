"""An HTTP client for the gateway of a running system, used by `call`, `tail`, and `services`."""

import os
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, build_opener
from urllib.request import Request as HttpRequest

import msgspec
import rich_click as click

from config.cli.common import F, http_url
from config.console import console_token
from config.folder_locks import running_url
from config.settings import Settings
from config.users import has_our_auth
from runtime import CallboardError

_TIMEOUT = 60.0
"""Seconds to wait for data from the gateway, by default."""
_LOCAL = ("127.0.0.1", "::1", "localhost")
_UNREACHABLE = (URLError, OSError, HTTPException)
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def with_gateway(function: F) -> F:
    """Add the options `--url` and `--as` to a command."""
    url = click.option(
        "--url",
        default="",
        help="The URL of the gateway (default: $CALLBOARD_URL, the running `dev` or `up` in this folder, or the address in the settings).",
    )
    user = click.option(
        "--as",
        "email",
        help="Log in as this user. Uses the password of the running `callboard dev` or `up` in this folder, or asks for it.",
    )
    role = click.option(
        "--role",
        "roles",
        multiple=True,
        help="Act as a user with this role, without a login. Works with the `callboard dev` or `up` that runs in this folder. May be repeated.",
    )
    return url(user(role(function)))


class Client:
    """A client of a gateway.

    Args:
        settings: the settings, which have the gateway's address and the development password.
        url: the URL of the gateway. If empty, `$CALLBOARD_URL`, or the URL of the system that `dev` or `up` runs on the database
            folder, or the address in the settings.
        email: the user to log in as. If None, the client uses the access token in `$CALLBOARD_TOKEN`, if it is set.
        roles: the roles of the user, who then needs no login.
        timeout: the seconds to wait for data from the gateway.

    Raises:
        CallboardError: if the URL is not an HTTP URL.
    """

    def __init__(
        self, settings: Settings, url: str, email: str | None, roles: Sequence[str] = (), timeout: float = _TIMEOUT
    ) -> None:
        running = running_url(Path(settings.database.folder))
        configured = http_url(settings.gateway.host, settings.gateway.port)
        self.url = (url or os.environ.get("CALLBOARD_URL") or running or configured).rstrip("/")
        host = _host(self.url)
        if host is None:
            raise CallboardError(f"--url {self.url}: expected a URL such as http://127.0.0.1:8000")
        self._settings = settings
        self._timeout = timeout
        self._email = email
        self._roles = tuple(roles)
        self._is_ours = running is not None and self.url.lower() == running.lower()
        """Whether the gateway belongs to the system that runs on this folder, and so made or got its development password."""
        # No redirects: they would take the token to another server. No proxy for servers on this machine
        self._opener = build_opener(_NoRedirect, *([ProxyHandler({})] if host in _LOCAL else []))
        self.token = os.environ.get("CALLBOARD_TOKEN")
        self._is_signed = False
        self._typed: str | None = None
        """The password that the user has typed. A long command sends it again when its token has expired."""

    def log_in(self, *, as_operator: bool = False) -> None:
        """Get an access token for the user. Does nothing if there is no user to log in as.

        For the system that runs on this folder it is signed with the console's key, unless the user is one of Callboard's auth service.
        The development password is sent only to this system. For any other, the user is asked.

        Args:
            as_operator: whether to act as an operator if neither a user nor an access token was given, and the system runs on this folder.

        Raises:
            CallboardError: if the gateway cannot be reached or refuses the login.
        """
        if self._roles or (self._email is not None and self._is_ours and not has_our_auth(self._settings)):
            self.token = self._signed(self._email or "console", self._roles)
        elif self._email is not None:
            self._log_in(self._email)
        elif as_operator and self._is_ours and (self.token is None or self._is_signed):
            self.token = console_token(self._settings)
            self._is_signed = self.token is not None

    def _signed(self, subject: str, roles: Sequence[str]) -> str:
        token = console_token(self._settings, subject, roles) if self._is_ours else None
        if token is None:
            raise CallboardError(
                f"nobody can act as {subject} at {self.url}: it is not the system that `dev` or `up` runs on "
                f"{self._settings.database.folder}: get an access token from its login, and set CALLBOARD_TOKEN"
            )
        return token

    def _log_in(self, email: str) -> None:
        password = (self._development_password() if self._is_ours else None) or self._typed or self._ask_for_password()
        self.token = None  # one that has expired would be refused
        status, answer = self.ask("POST", "/sessions", msgspec.json.encode({"email": email, "password": password}))
        token = answer.get("access_token")
        if status != 201 or not isinstance(token, str):
            hint = " (with --role rider, it acts as any user, without a login)" if self._is_ours and status == 401 else ""
            raise NotAllowed(f"cannot log in as {email} at {self.url}: {_reason(status, answer)}{hint}")
        self.token = token

    def _development_password(self) -> str | None:
        if self._settings.dev.password is not None:
            return self._settings.dev.password
        try:
            return (Path(self._settings.database.folder) / "password").read_text(encoding="utf-8-sig").strip()
        except OSError:
            return None

    def _ask_for_password(self) -> str:
        try:
            password: str = click.prompt(f"Password of {self._email} at {self.url}", hide_input=True, err=True)
        except click.Abort:
            raise CallboardError(
                f"no password for {self._email} at {self.url} was given (the development password is only sent to the system that runs on {self._settings.database.folder}): run this in a terminal, or set CALLBOARD_TOKEN"
            ) from None
        self._typed = password
        return password

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send a request. Return the status and the decoded JSON object, which is empty if the body is.

        Raises:
            CallboardError: if the gateway cannot be reached, or answers with something other than a JSON object.
        """
        status, answer = self.ask_any(method, path, body, headers)
        if answer is not None and not isinstance(answer, dict):
            raise CallboardError(f"{self.url}{path} answered {status} without a JSON object: is that the URL of a gateway?")
        return status, cast(dict[str, Any], answer or {})

    def ask_any(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send a request. Return the status and the decoded JSON body, or None if the body is empty. Raises like `ask`."""
        try:
            with self._opener.open(self._request(method, path, body, headers or {}), timeout=self._timeout) as response:
                text, status = response.read(), response.status
        except HTTPError as error:
            text, status = _body(error), error.code
        except _UNREACHABLE as error:
            raise self._unreachable(error) from None
        try:
            return status, msgspec.json.decode(text) if text else None
        except _NOT_JSON:
            raise CallboardError(
                f"{self.url}{path} answered {status} with a body that is not JSON: is that the URL of a gateway?"
            ) from None

    def follow(self, path: str, connected: Callable[[], None]) -> Iterator[tuple[str, Any]]:
        """Yield the name and data of each server-sent event of a path until the server ends the stream.

        Args:
            path: the path with its query.
            connected: called when the gateway has accepted the request.

        Raises:
            NotAllowed: if the gateway refuses the user.
            CallboardError: if it cannot be reached or refuses the request.
        """
        try:
            with self._opener.open(self._request("GET", path, None, {}), timeout=self._timeout) as response:
                connected()
                name = ""
                for line in response:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, msgspec.json.decode(value)
        except HTTPError as error:
            found = NotAllowed if error.code in (401, 403) else CallboardError
            raise found(describe_problem(error.code, _decoded(_body(error)))) from None
        except (*_UNREACHABLE, *_NOT_JSON) as error:
            raise self._unreachable(error) from None

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> HttpRequest:
        sent = {**headers, "Content-Type": "application/json"}
        if self.token is not None:
            sent["Authorization"] = f"{self._settings.identity.scheme} {self.token}"
        return HttpRequest(f"{self.url}{path}", data=body, method=method, headers=sent)  # noqa: S310  # __init__ allows only http and https

    def _unreachable(self, error: Exception) -> CallboardError:
        reason = error.reason if isinstance(error, URLError) else error
        return CallboardError(
            f"{self.url} cannot be reached ({reason or type(error).__name__}): is the system running? (start it with `make dev`, or name another gateway with --url)"
        )


class NotAllowed(CallboardError):
    """The gateway refuses the user or the access token: another attempt would be refused, too."""


class _NoRedirect(HTTPRedirectHandler):
    """Does not follow redirects: their answers are returned like any other."""

    def redirect_request(self, req: HttpRequest, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _host(url: str) -> str | None:
    """Return the host of an HTTP URL, or None if the URL is not one."""
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:
        return None


def _body(error: HTTPError) -> bytes:
    try:
        return error.read()
    except _UNREACHABLE:
        return b""


def _reason(status: int, answer: dict[str, Any]) -> str:
    reason = answer.get("title")
    if isinstance(reason, str):
        return reason
    return f"it answered {status} without {'an access token' if status == 201 else 'a reason'}: is that the URL of a gateway?"


def describe_problem(status: int, problem: Any) -> str:
    """Return a problem document as one line of text."""
    found = cast(dict[str, Any], problem) if isinstance(problem, dict) else {}
    text = f"{status} {found.get('detail') or found.get('title') or 'without a reason'}"
    return text + {
        401: " (log in with --as operator@example.com, or set CALLBOARD_TOKEN)",
        403: " (operators and admins may look)",
    }.get(status, "")


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except _NOT_JSON:
        return None
