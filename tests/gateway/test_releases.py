"""The routes and the OpenAPI document while a service is deployed, and after it has gone."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.manifests import Manifests
from gateway.openapi import document
from gateway.route_owners import RouteOwners
from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, roles
from runtime.clock import Clock, Random
from runtime.contract.rest import HttpBinding
from runtime.metrics import Metrics
from runtime.network import Manifest, Registry, RequestInfo
from runtime.testing import eventually
from tests.gateway.environment import check_problem
from tests.gateway.routes import who
from tests.runtime.execution.releases import Deployment, NewShelf, OldShelf, Release, deployment


@asynccontextmanager
async def gateway(kind: str, folder: Path, **settings: Any) -> AsyncGenerator[tuple[Deployment, httpx.AsyncClient], None]:
    served = Gateway(GatewaySettings(port=0, **({"request_timeout": 2.0} | settings)))
    async with (
        deployment(kind, folder, lambda: served) as releases,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=10, verify=False) as client,
    ):
        yield releases, client


async def answers(client: httpx.AsyncClient, method: str, path: str, count: int = 10) -> set[tuple[int, Any]]:
    found: set[tuple[int, Any]] = set()
    for _ in range(count):
        answer = await client.request(method, path, json={} if method in ("POST", "PUT") else None)
        found.add((answer.status_code, answer.json() if answer.status_code < 300 else answer.json()["code"]))
    return found


@pytest.mark.parametrize("kind", ["memory", "zero-copy", "mqtt", "http"])
async def test_each_route_leads_only_to_instances_that_have_it(kind: str, tmp_path: Path) -> None:
    first, second = (NewShelf, OldShelf) if kind == "memory" else (OldShelf, NewShelf)
    async with gateway(kind, tmp_path) as (releases, client):
        await releases.start(first, second)
        assert await answers(client, "POST", "/reservations/x") == {(201, "new x")}, "only the new release has it"
        assert await answers(client, "DELETE", "/books") == {(200, "old discard")}, "only the old release has it"
        assert await answers(client, "GET", "/books/x") == {(200, "old x")}, "the request has another path in the new release"
        assert await answers(client, "GET", "/shelf/books/x") == {(200, "new x")}
        assert await answers(client, "GET", "/books") <= {(200, "old list"), (200, "new list")}, "the route has another request"
        assert await answers(client, "POST", "/loans/x") <= {(200, "old loan"), (201, "new loan")}, "its status is its release's"
        assert await answers(client, "GET", "/loans", 1) == {(404, "not-found")}
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert set(paths) == {"/books", "/books/{id}", "/shelf/books/{title}", "/reservations/{title}", "/loans/{title}"}
        assert set(paths["/books"]) == {"get", "delete"}
        assert paths["/books"]["get"]["operationId"] == "shelf.ListPage", "it describes the newest release"
        assert paths["/books/{id}"]["get"]["operationId"] != paths["/shelf/books/{title}"]["get"]["operationId"]


@pytest.mark.parametrize(("first", "then"), [(OldShelf, NewShelf), (NewShelf, OldShelf)], ids=["deployed", "rolled back"])
async def test_what_only_the_other_release_has_is_kept_for_a_while(first: Release, then: Release, tmp_path: Path) -> None:
    gone, stays = (("DELETE", "/books"), ("POST", "/reservations/x"))[:: 1 if first is OldShelf else -1]
    async with gateway("memory", tmp_path, forget_after=60, request_timeout=0.2) as (releases, client):
        await releases.start(first, then)
        await releases.stop(first)
        (problem,) = await answers(client, *gone, 1)
        assert problem == (503, "no-instance")
        assert {status for status, _ in await answers(client, *stays)} <= {200, 201}
        assert gone[1].replace("/x", "/{title}") in (await client.get("/openapi.json")).json()["paths"]


def instance(service: str, node: str, version: str, *requests: RequestInfo, **more: Any) -> Manifest:
    return Manifest(service, node, f"{service}-{node}", version, requests, **more)


def request(name: str, route: str, **more: Any) -> RequestInfo:
    method, _, path = route.partition(" ")
    fields = tuple(part[1:-1] for part in path.split("/") if part.startswith("{"))
    schema = {"properties": {field: {"type": "string"} for field in fields}, "required": list(fields)}
    return RequestInfo(name, more.pop("allow", ANYONE), HttpBinding(method, path, 200, fields), request=schema, **more)


class Known:
    """What a gateway knows, under a time that the test advances."""

    def __init__(self, *owners: str, expects: tuple[str, ...] = (), file: Path | None = None) -> None:
        self.now = 1000.0
        self.registry = Registry(Clock(), Random(Clock(), 1), lambda service: None)
        settings = GatewaySettings(expects=expects, owners=owners, forget_after=3600)
        self.manifests = Manifests(self.registry, Metrics(), settings, RouteOwners(owners, file, Metrics()), lambda: self.now)

    def who(self, route: str) -> str | None:
        method, _, path = route.partition(" ")
        return who(self.manifests.routes(), method, path)

    def later(self, hours: float) -> bool:
        self.now += timedelta(hours=hours).total_seconds()
        return self.manifests.forget()

    def paths(self) -> set[str]:
        return set(self.manifests.document("", "")["paths"])


RIDE = instance("rides", "one", "1", request("rides.List", "GET /rides"))


async def test_a_service_that_is_away_keeps_its_paths_until_it_is_forgotten() -> None:
    known = Known()
    known.registry.join(RIDE)
    known.registry.leave(RIDE.address, lost=True)
    assert known.who("GET /rides") == "rides"
    assert known.paths() == {"/rides"}
    assert not known.later(0.9)
    assert known.paths() == {"/rides"}
    assert known.later(0.2)
    assert known.who("GET /rides") is None
    assert known.paths() == set()
    assert known.manifests.missing() == [], "the gateway stays ready"
    assert not known.later(1)
    known.registry.join(RIDE)
    assert known.who("GET /rides") == "rides", "it may come back all the same"
    assert known.paths() == {"/rides"}


async def test_a_service_that_restarts_again_and_again_is_not_forgotten() -> None:
    known = Known()
    for _ in range(5):
        known.registry.join(RIDE)
        known.registry.leave(RIDE.address, lost=True)
        assert not known.later(0.9)
    assert known.paths() == {"/rides"}


@pytest.mark.parametrize("known", [Known(expects=("rides",)), Known("/rides=rides")], ids=["expects", "owners"])
async def test_a_service_that_the_operator_names_is_never_forgotten(known: Known) -> None:
    known.registry.join(RIDE)
    known.registry.leave(RIDE.address, lost=True)
    assert not known.later(1000)
    assert known.who("GET /rides") == "rides"
    assert known.paths() == {"/rides"}
    newer = instance("rides", "two", "2", request("rides.Page", "GET /rides/pages"))
    known.registry.join(newer)
    assert known.later(1), "what it has no more is forgotten"
    assert known.paths() == {"/rides/pages"}


async def test_a_service_that_a_gateway_knows_only_as_an_owner_is_forgotten_too(tmp_path: Path) -> None:
    """The gateway has restarted since the service was removed. Its routes still belong to it."""
    before = Known(file=tmp_path / "owners.json")
    before.registry.join(RIDE)
    known = Known(file=tmp_path / "owners.json")
    assert known.who("GET /rides") == "503 rides"
    assert known.later(1.1)
    assert known.who("GET /rides") is None
    other = instance("other", "one", "1", request("other.List", "GET /rides"))
    known.registry.join(other)
    assert known.who("GET /rides") is None, "no other service may take it over"


@pytest.mark.parametrize("swap", [False, True])
async def test_two_versions_of_a_route_are_one_route_whichever_joined_first(swap: bool) -> None:
    old = instance(
        "rides", "one", "1.9", request("rides.Get", "GET /rides/{id}"), request("rides.List", "GET /rides", allow=roles("rider"))
    )
    new = instance("rides", "two", "1.10", request("rides.Get", "GET /rides/{ride}"), request("rides.Page", "GET /rides"))
    known = Known()
    for joining in (new, old) if swap else (old, new):
        known.registry.join(joining)
        known.registry.join(msgspec.structs.replace(joining, node=f"{joining.node} again"))
    assert [found.version for found in known.manifests.live["rides"]] == [
        "1.10",
        "1.9",
    ]
    assert known.paths() == {"/rides/{ride}", "/rides"}
    found = known.manifests.routes().find("GET", b"/rides")
    assert found is not None
    assert found[0].allow.anyone, "one of the versions admits everybody, and each checks for itself"
    assert repr(found[0]) == "<Route GET /rides -> rides.Page, rides.List>"


async def test_schemas_of_two_versions_do_not_mix() -> None:
    def version(number: str, fields: str, *requests: RequestInfo) -> Manifest:
        ride = {"type": "object", "properties": {"id": {"type": "string"}} | {name: {"type": "string"} for name in fields}}
        page = {
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"$ref": "#/components/schemas/rides.Ride"}}},
        }
        same = {"type": "object", "properties": {"x": {"type": "number"}}}
        return instance("rides", number, number, *requests, schemas={"rides.Ride": ride, "rides.Page": page, "rides.Same": same})

    reply = {"$ref": "#/components/schemas/rides.Page"}
    same = {"$ref": "#/components/schemas/rides.Same"}
    new = version("2", "b", request("rides.Get", "GET /new", reply=reply), request("rides.Same", "GET /same", reply=same))
    old = version("1", "a", request("rides.Get", "GET /old", reply=reply), request("rides.Alike", "GET /alike", reply=same))
    made = document("", "", [new, old])

    def fields(path: str) -> set[str]:
        def target(schema: Any) -> Any:
            return made["components"]["schemas"][schema["$ref"].rpartition("/")[2]]

        page = target(made["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"])
        return set(target(page["properties"]["items"]["items"])["properties"])

    assert fields("/new") == {"id", "b"}
    assert fields("/old") == {"id", "a"}
    assert set(made["components"]["schemas"]) == {
        "Problem",
        "rides.Page",
        "rides.Page.2",
        "rides.Ride",
        "rides.Ride.2",
        "rides.Same",
    }
    assert len({operation["get"]["operationId"] for operation in made["paths"].values()}) == 4


async def test_a_path_and_its_503_go_after_the_settable_time(tmp_path: Path) -> None:
    """With the real gateway: `gateway.forget_after`, in seconds."""
    async with gateway("memory", tmp_path, forget_after=0.5) as (releases, client):
        await releases.start(OldShelf)
        assert (await client.get("/books")).status_code == 200
        await releases.stop(OldShelf)
        assert "/books" in (await client.get("/openapi.json")).json()["paths"]

        async def gone() -> bool:
            return (await client.post("/loans/x", json={})).status_code == 404

        await eventually(gone, "the route is forgotten")
        check_problem(await client.get("/books"), 404, "not-found")
        assert (await client.get("/openapi.json")).json()["paths"] == {}
        assert (await client.get("/readyz")).status_code == 200
