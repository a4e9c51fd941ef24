"""A client of a running system, through its gateway: what `call` and `tail` share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import msgspec
import rich_click as click

from config.cli.common import F
from config.settings import Settings
from runtime import CallboardError

_SECONDS = 60


def with_gateway(function: F) -> F:
    """Adds `--url` and `--as`."""
    url = click.option("--url", default="", help="The gateway (default: $CALLBOARD_URL, else as the settings say).")
    user = click.option(
        "--as", "email", help="Log in as this user first; the password is the one of `callboard dev`, or asked for."
    )
    return url(user(function))


class Client:
    """Speaks to a gateway.

    Args:
        url: where it is; without one `$CALLBOARD_URL`, else what the settings say.
        email: who to log in as. Without one, the access token is that of `$CALLBOARD_TOKEN`, if there is one.
    """

    def __init__(self, settings: Settings, url: str, email: str | None) -> None:
        self.url = (url or os.environ.get("CALLBOARD_URL") or _address(settings)).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise CallboardError(f"--url {self.url}: expected http:// or https://")
        self._settings = settings
        self._email = email
        self.token = os.environ.get("CALLBOARD_TOKEN")

    def log_in(self, otherwise: str | None = None) -> None:
        """Gets an access token for the user, if one was named.

        Args:
            otherwise: who to be without a name, where no access token is given and `dev` or `up` runs in this folder.
        """
        if self._email is None and self.token is None and _kept_password(self._settings) is not None:
            self._email = otherwise
        if self._email is None:
            return
        password: str = (
            self._settings.dev.password or _kept_password(self._settings) or click.prompt("Password", hide_input=True, err=True)
        )
        status, answer = self.ask("POST", "/sessions", msgspec.json.encode({"email": self._email, "password": password}))
        if status != 201:
            raise CallboardError(f"cannot log in as {self._email}: {answer.get('title', status)}")
        self.token = answer["access_token"]

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Makes a request: the status, and the body, which is JSON.

        Raises:
            CallboardError: the gateway cannot be reached, or answers with something else.
        """
        try:
            with urlopen(self._request(method, path, body, headers or {}), timeout=_SECONDS) as response:  # noqa: S310
                text, status = response.read(), response.status
        except HTTPError as error:
            text, status = error.read(), error.code
        except (URLError, OSError) as error:
            raise self._unreachable(error) from None
        try:
            return status, msgspec.json.decode(text) if text else None
        except msgspec.DecodeError:
            raise CallboardError(f"{self.url}{path} answered {status} with something that is no JSON") from None

    def follow(self, path: str) -> Iterator[tuple[str, Any]]:
        """The server-sent events of a path, as pairs of name and data, until the server ends them.

        Raises:
            CallboardError: the gateway cannot be reached, or refuses.
        """
        try:
            with urlopen(self._request("GET", path, None, {}), timeout=_SECONDS) as response:  # noqa: S310
                name = ""
                for line in response:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, msgspec.json.decode(value)
        except HTTPError as error:
            raise CallboardError(said(error.code, _decoded(error.read()))) from None
        except (URLError, OSError, ValueError) as error:
            raise self._unreachable(error) from None

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> HttpRequest:
        sent = {**headers, "Content-Type": "application/json"}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        return HttpRequest(f"{self.url}{path}", data=body, method=method, headers=sent)  # noqa: S310  # http or https: __init__ has looked

    def _unreachable(self, error: Exception) -> CallboardError:
        reason = error.reason if isinstance(error, URLError) else error
        return CallboardError(f"{self.url} cannot be reached ({reason}): is the system running? (make dev; --url says where)")


def said(status: int, problem: Any) -> str:
    """A problem document, in a line."""
    found = cast(dict[str, Any], problem) if isinstance(problem, dict) else {}
    what = f"{status} {found.get('detail') or found.get('title') or 'without a reason'}"
    return what + {401: " (say who you are: --as operator@example.com)", 403: " (operators and admins may look)"}.get(status, "")


def _decoded(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None


def _address(settings: Settings) -> str:
    host = settings.gateway.host
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway.port}"


def _kept_password(settings: Settings) -> str | None:
    try:
        return (Path(settings.database.folder) / "password").read_text(encoding="utf-8").strip()
    except OSError:
        return None
