"""How operators' commands ask a service: through the gateway of a running system, or else in the service's database here."""

import functools
import os
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from config import compose
from config.cli.client import Client, describe_problem, with_gateway
from config.cli.common import F, loaded, run_loop, with_config
from config.cli.output import progress
from config.databases import answer_here, has_database
from config.folder_locks import running_url
from config.settings import Settings
from runtime import CallboardError, Request, ServiceError
from runtime.contract.messages import spec_of
from runtime.durable.console import Refused

T = TypeVar("T")

NO_DATABASE = "No service has a database here."


def with_operator(function: F) -> F:
    """Add the options that say which system a command is for. The command gets the `operator` that they name."""

    @functools.wraps(function)
    def call(*args: Any, url: str, email: str | None, roles: tuple[str, ...], config_file: Path | None, **options: Any) -> object:
        return function(*args, operator=Operator(loaded(config_file).settings, url, email, roles), **options)

    return with_gateway(with_config(cast(F, call)))


class Operator:
    """Asks the services of one system.

    A gateway is asked if one is named, or if `dev` or `up` runs in this folder. Otherwise the databases are opened here.

    Args:
        needs_gateway: whether a gateway is asked in any case, by default that of the settings.

    Raises:
        CallboardError: if the URL is not an HTTP URL.
    """

    def __init__(
        self,
        settings: Settings,
        url: str = "",
        email: str | None = None,
        roles: tuple[str, ...] = (),
        *,
        needs_gateway: bool = False,
    ) -> None:
        self.settings = settings
        self._client: Client | None = None
        if (
            needs_gateway
            or url
            or os.environ.get("CALLBOARD_URL")
            or running_url(Path(settings.database.folder))
            or email
            or roles
        ):
            self._client = Client(settings, url, email, roles)
        self._email = email
        self._logged_in = False

    @property
    def is_remote(self) -> bool:
        """Whether the gateway of a running system is asked."""
        return self._client is not None

    def client(self) -> Client:
        """Return the client of the gateway, logged in.

        Raises:
            CallboardError: if no system runs here and no gateway is named, or if the gateway cannot be reached or refuses the login.
        """
        if self._client is None:
            raise CallboardError(
                "no system runs here: name the gateway of one with --url or CALLBOARD_URL, or run this where `dev` or `up` runs"
            )
        if self._email is None or not self._logged_in:  # without a login, a token is signed here, and again before it expires
            with progress("asking the gateway"):
                self._client.log_in(as_operator=True)
            self._logged_in = True
        return self._client

    def instances(self) -> list[dict[str, Any]]:
        """Return the instances of the running system, as the gateway sees them."""
        status, answer = self.client().ask("GET", "/console/services")
        self._logged_in = status != 401
        if status == 200 and "items" not in answer:
            raise CallboardError(f"{self.client().url}/console/services answered without a list: is that the URL of a gateway?")
        if status != 200 or not isinstance(answer.get("items"), list):
            raise CallboardError(describe_problem(status, answer))
        return cast(list[dict[str, Any]], answer["items"])

    def services(self) -> list[str]:
        """Return the services that can be asked about their streams."""
        if self.is_remote:
            return sorted({str(row.get("service")) for row in self.instances()} - {"gateway"})
        names = [one.contract.name for one in compose.definitions(self.settings) if one.needs_database]
        return [name for name in names if has_database(self.settings, name)]

    def ask(self, service: str, message: Request[T]) -> T:
        """Make a request of the console.

        Raises:
            CallboardError: if it is refused, or nobody answers it.
        """
        if self.is_remote:
            return self._ask_gateway(service, message)
        compose.definitions(self.settings, [service])  # names a service that does not exist
        try:
            return run_loop(answer_here(self.settings, service, message))
        except ServiceError as error:
            raise CallboardError(str(error)) from error

    def _ask_gateway(self, service: str, message: Request[T]) -> T:
        spec = spec_of(type(message))
        status, answer = self.client().ask_any("POST", f"/console/services/{service}/{spec.name}", spec.codec.encode(message))
        self._logged_in = status != 401  # the token has expired: the next request logs in again
        if status != 200:
            reason = cast(dict[str, Any], answer).get("reason") if isinstance(answer, dict) else None
            raise CallboardError(
                str(reason) if reason is not None and status == Refused.status else describe_problem(status, answer)
            )
        reply: T = spec.reply_codec.decode(msgspec.json.encode(answer))
        return reply


def chosen_services(operator: Operator, names: tuple[str, ...]) -> list[str]:
    """Return the named services, or all that can be asked."""
    return list(names) or operator.services()
