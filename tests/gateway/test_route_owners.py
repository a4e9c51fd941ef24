"""The owners of routes: configured, stored, and defended against other services."""

import json
import logging
from pathlib import Path

import httpx
import msgspec
import pytest
import yaml  # type: ignore[import-untyped]

from config import compose
from config.load import load
from config.values import SettingsError
from gateway.route_owners import RouteOwners
from gateway.routing import Routes
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, Context, Contract, Node, Request, Service, StartError, handles
from runtime.metrics import Metrics
from runtime.network import Manifest
from runtime.testing import FakeAuth, eventually
from tests.gateway.routes import manifest, who
from tests.project import RENTAL, rental
from tests.system_under_test import PASSWORD, open_system, settings
from transports.memory import MemoryNetwork, MemoryTransport

thief = Contract("thief")


@thief.message
class Take(Request[None]):
    """Receive what was meant for another service."""

    email: str
    password: str


class Thief(Service):
    contract = thief
    taken = 0

    @handles(http="POST /sessions", status=201, allow=ANYONE)
    async def take(self, message: Take, ctx: Context) -> None:
        Thief.taken += 1


def served(owners: RouteOwners, *manifests: Manifest) -> dict[str, str]:
    """Return the service of each admitted route."""
    return {
        f"{info.http.method} {info.http.path}": admitted.service
        for admitted in owners.admit(manifests)
        for info in admitted.requests
        if info.http is not None
    }


async def test_a_configured_owner_keeps_its_route_although_another_service_came_first(caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork()
    gateway = Gateway(GatewaySettings(port=0, owners=("/sessions=auth",)))
    async with Node([Thief], MemoryTransport(network)), Node([FakeAuth, lambda: gateway], MemoryTransport(network)) as node:
        await node.registry.wait_for("thief")
        assert gateway.dispatcher.routes.find("POST", b"/sessions") is None
        assert "/sessions" not in gateway.document()["paths"]
        assert node.metrics.value("routes_refused_total", service="thief") == 1
        assert "announces POST /sessions, which belongs to auth" in caplog.text


async def test_a_stored_owner_keeps_its_route_after_a_restart(tmp_path: Path) -> None:
    """The thief is there before auth is, and the gateway's settings name nobody."""
    Thief.taken = 0
    chosen = settings(tmp_path)
    login = {"email": "rider@example.com", "password": PASSWORD}
    async with open_system(chosen):
        stored = json.loads((tmp_path / "gateway.routes.json").read_bytes())
    assert stored["POST /sessions"] == "auth"
    assert stored["PATCH /users/{}"] == "auth"
    assert oct((tmp_path / "gateway.routes.json").stat().st_mode & 0o777) == "0o600"
    network = MemoryNetwork()
    gateway = Gateway(GatewaySettings(port=0), tmp_path / "gateway.routes.json")
    async with (
        Node([Thief], MemoryTransport(network)),
        Node([lambda: gateway], MemoryTransport(network)) as node,
        Node([compose.chosen(chosen, ("auth",))["auth"]], MemoryTransport(network), databases=compose.databases(chosen)),
    ):
        await node.registry.wait_for("auth", "thief")
        await eventually(lambda: gateway.dispatcher.routes.find("POST", b"/sessions"), "auth's route is served")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=20, verify=False) as client:
            assert (await client.post("/sessions", json=login)).status_code == 201
    assert Thief.taken == 0


def test_the_first_service_that_announces_a_route_owns_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, metrics = tmp_path / "data" / "routes.json", Metrics()
    owners = RouteOwners((), file, metrics)
    auth, other = manifest("auth", "POST /sessions", "GET /users/{id}"), manifest("other", "POST /sessions", "GET /other")
    assert served(owners, auth)["POST /sessions"] == "auth"
    for again in (owners, RouteOwners((), file, metrics)):
        assert served(again, other) == {"GET /other": "other"}, "also while auth is away"
        assert served(again, other, auth)["POST /sessions"] == "auth"
        assert served(again, manifest("other", "GET /users/{name}")) == {}, "the names of parameters do not matter"
    logged = [record for record in caplog.records if record.levelno == logging.ERROR and "POST /sessions" in record.getMessage()]
    assert len(logged) == 2, "one line for each gateway, however often the routes change"
    assert metrics.value("routes_refused_total", service="other") == 4


@pytest.mark.parametrize(
    ("route", "refused"),
    [
        ("GET /users/me", True),
        ("POST /users/me", False),
        ("GET /users/me/rides", False),
        ("GET /{x}/{y}", False),
        ("GET /{x}/me", False),
        ("GET /users", False),
    ],
)
def test_a_route_that_would_take_requests_from_anothers_is_refused(route: str, refused: bool) -> None:
    owners = RouteOwners((), None, Metrics())
    served(owners, manifest("auth", "GET /users/{id}"))
    assert served(owners, manifest("other", route)) == ({} if refused else {route: "other"})
    assert (
        served(RouteOwners((f"{route}=other",), None, Metrics()), manifest("auth", "GET /users/{id}"), manifest("other", route))[
            route
        ]
        == "other"
    ), "the settings may say otherwise"
    if refused:
        assert served(owners, manifest("auth", route)) == {route: "auth"}, "its own route is never refused"


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("owner", ["PATCH /users/{id}", "/users/{id}", "/users/{id}/"])
def test_a_route_with_a_parameter_is_protected_although_its_owner_comes_later(owner: str, stored: bool, tmp_path: Path) -> None:
    file = tmp_path / "routes.json"
    auth, other = manifest("auth", "PATCH /users/{id}"), manifest("rogue", "PATCH /users/admin", "PATCH /admin")
    if stored:
        assert served(RouteOwners((), file, Metrics()), other).keys() == {"PATCH /users/admin", "PATCH /admin"}
    metrics = Metrics()
    owners = RouteOwners((f"{owner}=auth",), file, metrics)
    for manifests in ((other,), (other, auth), (other,)):
        assert "PATCH /users/admin" not in served(owners, *manifests)
    assert metrics.value("routes_refused_total", service="rogue") == 1
    routes = Routes(owners.admit((other, auth)), (), owners.routes(), owners.prefixes)
    assert who(routes, "PATCH", "/users/admin") == "auth"
    assert served(RouteOwners((f"{owner}=auth", "PATCH /users/admin=rogue"), None, Metrics()), other, auth).keys() == {
        "PATCH /users/admin", "PATCH /admin", "PATCH /users/{id}",
    }, "the settings may say otherwise"  # fmt: skip


def test_a_stored_route_with_a_parameter_is_protected_while_its_owner_is_away(tmp_path: Path) -> None:
    file = tmp_path / "routes.json"
    served(RouteOwners((), file, Metrics()), manifest("auth", "PATCH /users/{id}"))
    assert served(RouteOwners((), file, Metrics()), manifest("rogue", "PATCH /users/admin")) == {}


@pytest.mark.parametrize("configured", ["/sessions=auth", "/sessions/=auth"])
def test_a_slash_at_the_end_of_a_prefix_does_not_matter(configured: str) -> None:
    owners = RouteOwners(load(environment={"CALLBOARD_GATEWAY__OWNERS": configured}).settings.gateway.owners, None, Metrics())
    assert served(owners, manifest("rogue", "POST /sessions", "GET /sessions/{id}", "GET /sessionsx")) == {
        "GET /sessionsx": "rogue"
    }


@pytest.mark.parametrize(
    "configured",
    ["//sessions=auth", "/a//b=auth", "/sess*=auth", "/sessi%6Fns=auth", "/x?y=auth", "/users/{id=auth", "/users/a{id}=auth", "HEAD /x=auth",
     "FETCH /x=auth", "GET /=auth", "sessions=auth", "/sessions//=auth", "/sessions=", "/sessions"],
)  # fmt: skip
def test_a_setting_that_would_protect_nothing_stops_the_start(configured: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load(environment={"CALLBOARD_GATEWAY__OWNERS": configured})
    assert "CALLBOARD_GATEWAY__OWNERS" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_the_most_specific_setting_counts() -> None:
    owners = RouteOwners(
        (
            "/=root",
            "/users=auth",
            "GET /users/{id}=people",
            "GET /users=nobody",
            "/users/{id}/rides=rides",
            "/users/=nobody",
            "/users=last",
        ),
        None,
        Metrics(),
    )
    routes = ("POST /users", "GET /users/{x}", "PATCH /users/{x}", "GET /users/{x}/rides/{y}", "GET /usersx")
    found = served(owners, *(manifest(service, *routes) for service in ("root", "auth", "people", "rides", "last")))
    assert [found[route] for route in routes] == ["last", "people", "last", "rides", "root"]


def test_an_operator_moves_a_route_by_a_setting(tmp_path: Path) -> None:
    file, route = tmp_path / "routes.json", "POST /sessions"
    old, new = manifest("auth", route), manifest("accounts", route)
    assert served(RouteOwners((), file, Metrics()), old, new) == {route: "auth"}
    assert served(RouteOwners((f"{route}=accounts",), file, Metrics()), old, new) == {route: "accounts"}
    assert served(RouteOwners((), file, Metrics()), old, new) == {route: "accounts"}, "the setting has been removed"


def test_gateways_that_share_a_folder_agree(tmp_path: Path) -> None:
    one, two = (RouteOwners((), tmp_path / "routes.json", Metrics()) for _ in range(2))
    assert served(one, manifest("a", "GET /x")) == {"GET /x": "a"}
    served(two, manifest("b", "GET /x", "GET /y"))
    assert served(two, manifest("b", "GET /x", "GET /y")) == {"GET /y": "b"}
    assert json.loads((tmp_path / "routes.json").read_bytes()) == {"GET /x": "a", "GET /y": "b"}


def test_a_file_that_cannot_be_read_stops_the_start_and_one_that_cannot_be_written_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "routes.json"
    file.write_text("{")
    with pytest.raises(StartError, match=r"routes\.json: the owners of routes cannot be read"):
        RouteOwners((), file, Metrics())
    for configured, warned in ((("/x=a",), False), ((), True)):
        folder = tmp_path / f"folder {warned}"
        owners = RouteOwners(configured, folder / "routes.json", Metrics())
        folder.touch()
        assert served(owners, manifest("a", "GET /x")) == {"GET /x": "a"}
        assert ("the owners of routes are not stored" in caplog.text) == warned


def test_the_services_that_run_together_own_their_routes() -> None:
    chosen = compose.with_route_owners(rental(gateway=GatewaySettings(owners=("POST /sessions=accounts",))))
    assert {"POST /rides=rides", "PATCH /users/{id}=auth"} < set(chosen.gateway.owners)
    owners = RouteOwners(chosen.gateway.owners, None, Metrics())
    assert served(owners, manifest("auth", "POST /sessions"), manifest("accounts", "POST /sessions")) == {
        "POST /sessions": "accounts"
    }


def test_the_compose_file_names_the_owners_of_all_routes() -> None:
    text = yaml.safe_load((Path(__file__).parents[2] / "containers" / "compose.yaml").read_text())
    environment = {"CALLBOARD_GATEWAY__OWNERS": text["services"]["gateway"]["environment"]["CALLBOARD_GATEWAY__OWNERS"]}
    owners = RouteOwners(load(environment=environment).settings.gateway.owners, None, Metrics())
    manifests = compose.manifests(RENTAL)
    stolen = [msgspec.structs.replace(manifest, service="thief") for manifest in manifests]
    assert not any(info.http for admitted in owners.admit(stolen) for info in admitted.requests), "nobody else has any"
    assert owners.admit(manifests) == manifests
