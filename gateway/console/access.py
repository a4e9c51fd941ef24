"""Who may use the console: operators with their access tokens, and in development everybody at this machine, without a login."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from gateway.asgi import Scope, exchange_of
from gateway.client import bearer_token, require_token
from gateway.console.requests import require_operator
from gateway.problems import Problem
from gateway.routing import query_params
from gateway.tickets import Tickets
from runtime import ServiceError, Struct
from runtime.issuers import Identity
from runtime.node.proxy import Proxy

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_OF_PROXIES = (b"forwarded", b"via", b"x-real-ip")
_SECONDS = 10.0


class Development(NamedTuple):
    """What opens the console in development.

    Attributes:
        sign: returns an access token for a user's id and roles.
        users: the roles of the example users, by their email addresses.
        password: their password.
    """

    sign: Callable[[str, Sequence[str]], str | None]
    users: Mapping[str, str]
    password: str

    def __repr__(self) -> str:
        return "Development(***)"


class ConsoleSource(NamedTuple):
    """What the console gets from whoever has started the gateway.

    Attributes:
        settings: returns each setting with its value and source. Secrets are masked.
        development: opens it without a login; None outside development.
    """

    settings: Callable[[], list[dict[str, str]]]
    development: Development | None = None


class Session(Struct):
    """A user of the console, or one as whom it makes a request.

    Attributes:
        expires_in: the seconds for which the token is valid, at least.
        users: as whom the console makes requests in development: the role of each.
    """

    token: str
    user: str
    users: dict[str, str]
    expires_in: int = 300

    def __repr__(self) -> str:
        return f"Session({self.user}, ***)"


class _SessionRequest(msgspec.Struct, forbid_unknown_fields=True):
    user: str = ""


class _Tokens(msgspec.Struct):
    access_token: str


class Access:
    """Decides who may use the console.

    Args:
        is_on: whether the settings turn it on for operators.
        development: opens it without a login; None outside development.

    Attributes:
        is_on: whether there is a console.
        is_open: whether it is open without a login.
    """

    def __init__(self, proxy: Proxy, tickets: Tickets, development: Development | None, *, is_on: bool) -> None:
        self._proxy = proxy
        self._tickets = tickets
        self._development = development
        self.is_open: bool = development is not None
        self.is_on: bool = is_on or development is not None

    def require_on(self) -> None:
        """Check that there is a console.

        Raises:
            Problem: if there is none (404).
        """
        if not self.is_on:
            raise Problem(404, "not-found", 'The console is off: gateway.console = "operators" turns it on.')

    async def require(self, scope: Scope) -> tuple[Identity, str]:
        """Return the identity and the access token of an operator who uses the console. Raises like `require_on` and `require_operator`."""
        self.require_on()
        return await self.require_operator(scope)

    async def require_operator(self, scope: Scope) -> tuple[Identity, str]:
        """Return the identity and the access token of an operator, from `Authorization` or a ticket.

        Raises:
            Unauthenticated: if the request has no valid token and no ticket that works.
            Forbidden: if the user is no operator.
        """
        headers = dict(scope["headers"])
        ticket = dict(query_params(scope["query_string"])).get("ticket")
        if ticket is not None and b"authorization" not in headers:
            headers[b"authorization"] = b"Bearer " + (await self._tickets.redeem(ticket)).encode()
        return await require_operator(self._proxy, headers)

    async def user(self, scope: Scope) -> str:
        """Return the id of the operator who has sent a request; empty if it is none: the page then asks for a login. Raises like `require_on`."""
        self.require_on()
        if b"authorization" not in dict(scope["headers"]):
            return ""
        try:
            return (await self.require_operator(scope))[0].subject
        except ServiceError:
            return ""

    async def begin(self, scope: Scope, body: bytes) -> Session:
        """Begin a session of development, as the console's own user or as a named example user.

        Raises:
            Problem: if this is not development, or if the request does not come from a page of the console on this machine (403).
            ServiceError: if the user cannot be logged in.
        """
        development = self._require_development("Log in as an operator: only `callboard dev` opens the console without a login.")
        _require_own_page(scope)
        user = _session_request(body).user
        token = development.sign("console", ("operator", "admin")) if not user else await self._log_in(development, user)
        if token is None:
            raise Problem(503, "no-key", "The key of the console is gone: start `callboard dev` again.")
        return Session(token, user or "console", dict(development.users))

    async def _log_in(self, development: Development, user: str) -> str:
        if user not in development.users:
            raise Problem(404, "no-user", f"No example user is called {user!r:.100}.")
        ctx = self._proxy.context(self._proxy.new_id(), None, None, _SECONDS)
        login = msgspec.json.encode({"email": user, "password": development.password})
        return msgspec.json.decode(await self._proxy.ask(ctx, "auth", "auth.Login", login), type=_Tokens).access_token

    async def require_development(self, scope: Scope) -> Identity:
        """Return the identity of an operator, in development alone.

        Raises:
            Problem: if this is not development (403).
        """
        self._require_development("Only `callboard dev` publishes signals from outside.")
        return (await self.require_operator(scope))[0]

    def user_token(self, scope: Scope) -> str:
        """Return the access token of the user as whom a request of the console is made, in development.

        Raises:
            Problem: if this is not development (403).
            Unauthenticated: if there is no token.
        """
        self._require_development("Only `callboard dev` makes requests for users: use the REST API, which /docs shows.")
        return require_token(bearer_token(dict(scope["headers"])))

    def _require_development(self, otherwise: str) -> Development:
        """Return what opens the console in development. Raises `Problem`, like `require_on`, or with this explanation (403)."""
        self.require_on()
        if self._development is None:
            raise Problem(403, "login-needed", otherwise)
        return self._development


def _session_request(body: bytes) -> _SessionRequest:
    try:
        return msgspec.json.decode(body or b"{}", type=_SessionRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, "invalid", f"{error}: expected an object with user, or nothing.") from None


def _require_own_page(scope: Scope) -> None:
    """Check that a request comes from this machine, and from a page of this gateway: no other page may act as an operator here.

    A page of another site can send a request here, and can let its own name mean this machine's address. So both the `Host` and what
    the browser says about the page count (the Fetch standard, section 3.2; Fetch Metadata).

    Raises:
        Problem: if not (403).
    """
    headers, exchange = dict(scope["headers"]), exchange_of(scope)
    host = headers.get(b"host", b"").decode("latin-1")
    name = host.rpartition(":")[0].strip("[]") if ":" in host.rpartition("]")[2] else host.strip("[]")
    is_own = (
        name in _LOOPBACK
        and exchange.peer in _LOOPBACK
        and not any(field in _OF_PROXIES or field.startswith(b"x-forwarded-") for field in headers)
        and headers.get(b"sec-fetch-site", b"same-origin") == b"same-origin"
        and headers.get(b"origin") == b"http://" + headers.get(b"host", b"")
        and headers.get(b"content-type", b"").partition(b";")[0] == b"application/json"
    )
    if not is_own:
        detail = "Without a login, the console is only for pages of this gateway at http://127.0.0.1 or http://localhost, on the machine that runs it."
        raise Problem(403, "login-needed", detail)
