"""An HTTP client for the gateway of a running system, used by `call`, `tail`, and `services`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import msgspec
import rich_click as click

from config.cli.common import F, http_url
from config.settings import Settings
from runtime import CallboardError

_TIMEOUT = 60
"""Seconds to wait for data from the gateway."""


def with_gateway(function: F) -> F:
    """Add the options `--url` and `--as` to a command."""
    url = click.option(
        "--url", default="", help="The URL of the gateway (default: $CALLBOARD_URL, or the address in the settings)."
    )
    user = click.option(
        "--as", "email", help="Log in as this user. Uses the password of `callboard dev` or `up` in this folder, or asks for it."
    )
    return url(user(function))


class Client:
    """A client of a gateway.

    Args:
        settings: the settings, which have the gateway's address and the development password.
        url: the URL of the gateway. If empty, `$CALLBOARD_URL` or the address in the settings.
        email: the user to log in as. If None, the client uses the access token in `$CALLBOARD_TOKEN`, if it is set.

    Raises:
        CallboardError: if the URL is not an HTTP URL.
    """

    def __init__(self, settings: Settings, url: str, email: str | None) -> None:
        self.url = (url or os.environ.get("CALLBOARD_URL") or http_url(settings.gateway.host, settings.gateway.port)).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise CallboardError(f"--url {self.url}: expected http:// or https://")
        self._settings = settings
        self._email = email
        self.token = os.environ.get("CALLBOARD_TOKEN")

    def log_in(self, default_email: str | None = None) -> None:
        """Get an access token for the user. Does nothing if there is no user to log in as.

        Args:
            default_email: the user to log in as if neither a user nor an access token was given. It is used only in a
                folder in which `dev` or `up` has stored a password.

        Raises:
            CallboardError: if the gateway cannot be reached or refuses the login.
        """
        if self._email is None and self.token is None and _stored_password(self._settings) is not None:
            self._email = default_email
        if self._email is None:
            return
        password: str = (
            self._settings.dev.password or _stored_password(self._settings) or click.prompt("Password", hide_input=True, err=True)
        )
        status, answer = self.ask("POST", "/sessions", msgspec.json.encode({"email": self._email, "password": password}))
        if status != 201:
            raise CallboardError(f"cannot log in as {self._email}: {answer.get('title', status)}")
        self.token = answer["access_token"]

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Send a request. Return the status and the decoded JSON body, or None if the body is empty.

        Raises:
            CallboardError: if the gateway cannot be reached, or answers with something other than JSON.
        """
        try:
            with urlopen(self._request(method, path, body, headers or {}), timeout=_TIMEOUT) as response:  # noqa: S310
                text, status = response.read(), response.status
        except HTTPError as error:
            text, status = error.read(), error.code
        except (URLError, OSError) as error:
            raise self._unreachable(error) from None
        try:
            return status, msgspec.json.decode(text) if text else None
        except msgspec.DecodeError:
            raise CallboardError(f"{self.url}{path} answered {status} with a body that is not JSON") from None

    def follow(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yield the name and data of each server-sent event of a path until the server ends the stream.

        Raises:
            CallboardError: if the gateway cannot be reached or refuses the request.
        """
        try:
            with urlopen(self._request("GET", path, None, {}), timeout=_TIMEOUT) as response:  # noqa: S310
                name = ""
                for line in response:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, msgspec.json.decode(value)
        except HTTPError as error:
            raise CallboardError(describe_problem(error.code, _decoded(error.read()))) from None
        except (URLError, OSError, ValueError) as error:
            raise self._unreachable(error) from None

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> HttpRequest:
        sent = {**headers, "Content-Type": "application/json"}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        return HttpRequest(f"{self.url}{path}", data=body, method=method, headers=sent)  # noqa: S310  # __init__ allows only http and https

    def _unreachable(self, error: Exception) -> CallboardError:
        reason = error.reason if isinstance(error, URLError) else error
        return CallboardError(
            f"{self.url} cannot be reached ({reason}): is the system running? (start it with `make dev`, or name another gateway with --url)"
        )


def describe_problem(status: int, problem: Any) -> str:
    """Return a problem document as one line of text."""
    found = cast(dict[str, Any], problem) if isinstance(problem, dict) else {}
    text = f"{status} {found.get('detail') or found.get('title') or 'without a reason'}"
    return text + {401: " (log in with --as operator@example.com)", 403: " (operators and admins may look)"}.get(status, "")


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _stored_password(settings: Settings) -> str | None:
    try:
        return (Path(settings.database.folder) / "password").read_text(encoding="utf-8").strip()
    except OSError:
        return None
