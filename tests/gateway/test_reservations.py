"""Requests that belong to an owner that is away, or that has no route for them: no other service receives them."""

from pathlib import Path

import httpx
import pytest

from gateway.route_owners import RouteOwners
from gateway.routing import Routes
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, Context, Contract, Node, Request, Service, handles
from runtime.metrics import Metrics
from runtime.testing import FakeAuth, eventually
from tests.gateway.environment import check_problem
from tests.gateway.routes import manifest, who
from tests.system_under_test import PASSWORD
from transports.memory import MemoryNetwork, MemoryTransport

rogue = Contract("rogue")
accounts = Contract("accounts")


@rogue.message
class Catch(Request[str]):
    """Receive what another service's literal path does not catch."""

    name: str
    email: str = ""
    password: str = ""


@rogue.message
class Look(Request[str]):
    """Receive what another service's literal path does not catch."""

    x: str
    y: str


class Rogue(Service):
    contract = rogue

    @handles(http="POST /{name}", allow=ANYONE)
    async def catch(self, message: Catch, ctx: Context) -> str:
        return f"rogue has {message.password}"

    @handles(http="GET /{x}/{y}", allow=ANYONE)
    async def look(self, message: Look, ctx: Context) -> str:
        return f"rogue has {message.x}"


@accounts.message
class LogIn(Request[str]):
    """Log in."""

    email: str
    password: str


@accounts.message
class GetSession(Request[str]):
    """Return a session."""

    id: str


class Accounts(Service):
    contract = accounts

    @handles(http="POST /sessions", allow=ANYONE)
    async def log_in(self, message: LogIn, ctx: Context) -> str:
        return "accounts"

    @handles(http="GET /sessions/{id}", allow=ANYONE)
    async def get(self, message: GetSession, ctx: Context) -> str:
        return "accounts"


@pytest.mark.parametrize(
    "owners", [("/sessions=accounts",), ("/sessions/=accounts",), ("POST /sessions=accounts", "GET /sessions/{id}=accounts"), ()]
)
async def test_requests_of_an_owner_that_is_away_get_503_and_reach_no_other_service(
    tmp_path: Path, owners: tuple[str, ...]
) -> None:
    """The gateway has not seen the owner since its start. The stored routes count as much as the settings."""
    file = tmp_path / "gateway.routes.json"
    if not owners:
        RouteOwners((), file, Metrics()).admit([manifest("accounts", "POST /sessions", "GET /sessions/{id}")])
    network = MemoryNetwork()
    gateway = Gateway(GatewaySettings(port=0, owners=owners), file)
    login = {"email": "rider@example.com", "password": PASSWORD}
    async with (
        Node([Rogue], MemoryTransport(network)),
        Node([FakeAuth, lambda: gateway], MemoryTransport(network)) as node,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=20, verify=False) as client,
    ):
        await node.registry.wait_for("rogue")

        for method in ("GET", "HEAD"):
            assert (await client.request(method, "/sessions/1")).status_code == 503
        for seen in (False, True):
            for path in ("/sessions", "/sessio%6Es"):
                answer = await client.post(path, json=login)
                check_problem(answer, 503, "no-instance")
                assert answer.headers["retry-after"] == "1"
            assert (await client.post("/others", json=login)).json() == f"rogue has {PASSWORD}", "what nobody owns is its own"
            assert (await client.get("/others/1")).json() == "rogue has others"
            if not seen:
                async with Node([Accounts], MemoryTransport(network)):
                    await eventually(lambda: "accounts" in gateway.manifests.live, "the gateway knows the owner")
                    assert (await client.post("/sessions", json=login)).json() == "accounts"
                    assert (await client.get("/sessions/1")).json() == "accounts"
                await eventually(lambda: "accounts" not in gateway.manifests.live, "the owner has left")


@pytest.mark.parametrize(
    ("owner", "method", "path", "away", "without_route"),
    [
        ("POST /sessions=auth", "POST", "/sessions", "503 auth", None),
        ("/sessions=auth", "POST", "/sessions", "503 auth", None),
        ("/sessions=auth", "GET", "/sessions/1", "503 auth", None),
        ("/sessions=auth", "GET", "/sessions/", "503 auth", None),
        ("/sessions=auth", "GET", "/sessions/1/2/3", "503 auth", None),
        ("/sessions=auth", "OPTIONS", "/sessions", "503 auth", None),
        ("/sessions=auth", "POST", "/sessionsx", "rogue", "rogue"),
        ("POST /sessions=auth", "POST", "/other", "rogue", "rogue"),
        ("POST /sessions=auth", "GET", "/sessions", None, None),
        ("GET /users/{id}=auth", "GET", "/users/1", "503 auth", None),
        ("GET /{id}/me=auth", "GET", "/x/me", "503 auth", None),
        ("GET /{id}/me=auth", "GET", "/x/you", "rogue", "rogue"),
        ("/users/{id}/rides=auth", "GET", "/users/1/rides/2", "503 auth", None),
        ("/users/{id}/rides=auth", "GET", "/users/1", "rogue", "rogue"),
        ("/=auth", "POST", "/sessions", "503 auth", None),
    ],
)
def test_a_request_goes_to_its_owner_or_to_nobody(
    owner: str, method: str, path: str, away: str | None, without_route: str | None
) -> None:
    """The routes of the other service would match, and its own manifest is fine."""
    other = manifest("rogue", "POST /{name}", "GET /{x}/{y}", "GET /{x}/{y}/{z}/{w}")
    owners = RouteOwners((owner,), None, Metrics())
    assert who(Routes(owners.admit((other,)), (), owners.routes(), owners.prefixes), method, path) == away
    both = owners.admit((other, manifest("auth", "GET /auth")))
    assert who(Routes(both, (), owners.routes(), owners.prefixes), method, path) == without_route, "the owner is live, without it"
    gone = Routes(both[:1], both[1:], owners.routes(), owners.prefixes)
    assert who(gone, method, path) == away, "the owner was live, without it"


def test_an_owner_may_serve_its_path_by_a_route_with_parameters() -> None:
    other, auth = manifest("rogue", "GET /{x}/me"), manifest("auth", "GET /{x}/{y}")
    owners = RouteOwners(("GET /users/me=auth", "/sessions=auth", "GET /{x}/{y}=auth", "GET /{x}/me=rogue"), None, Metrics())
    routes = Routes(owners.admit((other, auth)), (), owners.routes(), owners.prefixes)
    for path, service in (("/users/me", "auth"), ("/sessions/me", "auth"), ("/sessions/x", "auth"), ("/x/me", "rogue")):
        assert who(routes, "GET", path) == service
    assert routes.methods(b"/users/me") == {"GET"}


def test_the_longest_prefix_owns_a_request_also_over_a_literal_segment() -> None:
    owners = RouteOwners(("/users/me=auth", "/users/{id}/rides=rides"), None, Metrics())
    manifests = manifest("auth", "GET /users/me/{x}", "GET /users/me/rides"), manifest("rides", "GET /users/{id}/rides")
    admitted = owners.admit(manifests)
    assert who(Routes(admitted, (), owners.routes(), owners.prefixes), "GET", "/users/me/rides") == "rides"
    assert who(Routes(admitted, (), owners.routes(), owners.prefixes), "GET", "/users/me/x") == "auth"
