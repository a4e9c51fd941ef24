"""Times in the format that a field asks for, from a REST client to the service and back, and between services."""

from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from openapi_spec_validator import validate

from runtime import ANYONE, Context, Contract, Header, Request, Service, ServiceError, Struct, handles, time_format
from tests.gateway.behind_gateway import KINDS, behind_gateway
from tests.gateway.environment import check_problem

shop = Contract("shop")
desk = Contract("desk")


class Hours(Struct, rename="camel"):
    opens_at: Annotated[datetime, time_format("unix")]
    closes_at: Annotated[datetime, time_format("iso-ms")]
    seen: tuple[Annotated[datetime, time_format("%d.%m.%Y")], ...] = ()
    changed: Annotated[datetime | None, Header("X-Changed"), time_format("unix-ms")] = None


@shop.message
class Closed(ServiceError):
    """The shop is closed."""

    code, status = "closed", 409
    until: Annotated[datetime, time_format("unix")]


@shop.message
class SetHours(Request[Hours], rename="camel"):
    id: str
    opens_at: Annotated[datetime, time_format("unix")]
    closes_at: Annotated[datetime | None, time_format("iso-ms")] = None


@shop.message
class FindHours(Request[Hours], rename="camel"):
    on: Annotated[datetime, time_format("unix-ms")]
    also: tuple[Annotated[datetime, time_format("%d.%m.%Y")], ...] = ()
    known: Annotated[datetime | None, Header("X-Known"), time_format("unix")] = None


@desk.message
class AskDesk(Request[Hours]):
    opens_at: Annotated[datetime, time_format("unix")]


class Shop(Service):
    contract = shop

    @handles(http="PUT /shops/{id}", allow=ANYONE, raises=(Closed,))
    async def set(self, message: SetHours, ctx: Context) -> Hours:
        if message.closes_at is None:
            raise Closed(message.opens_at)
        return Hours(message.opens_at, message.closes_at, changed=message.opens_at)

    @handles(http="GET /shops", allow=ANYONE)
    async def find(self, message: FindHours, ctx: Context) -> Hours:
        return Hours(message.on, message.known or message.on, message.also)


class Desk(Service):
    contract = desk
    calls = (shop,)

    @handles(http="POST /desk", allow=ANYONE)
    async def ask(self, message: AskDesk, ctx: Context) -> Hours:
        try:
            return await ctx.request(SetHours("1", message.opens_at))
        except Closed as closed:
            return await ctx.request(SetHours("1", message.opens_at, closed.until))


@pytest.fixture(params=KINDS)
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with behind_gateway(request.param, tmp_path, Shop, Desk) as deployed:
        yield deployed.client


async def test_bodies_header_fields_and_queries_are_in_the_format(client: httpx.AsyncClient) -> None:
    answer = await client.put("/shops/1", json={"opensAt": 1771384976, "closesAt": "2026-02-18T18:00:00.250Z"})
    assert answer.json() == {"opensAt": 1771384976, "closesAt": "2026-02-18T18:00:00.250Z", "seen": []}
    assert answer.headers["x-changed"] == "1771384976000"
    query = {"on": "1771384976637", "also": ["18.02.2026", "19.02.2026"]}
    answer = await client.get("/shops", params=query, headers={"X-Known": "1771384976"})
    expected = {"opensAt": 1771384976, "closesAt": "2026-02-18T03:22:56.000Z", "seen": ["18.02.2026", "19.02.2026"]}
    assert answer.json() == expected


async def test_errors_and_requests_between_services_are_in_the_format(client: httpx.AsyncClient) -> None:
    problem = check_problem(await client.put("/shops/1", json={"opensAt": 1771384976}), 409, "closed")
    assert problem["until"] == 1771384976
    assert (await client.post("/desk", json={"opens_at": 1771384976})).json()["closesAt"] == "2026-02-18T03:22:56.000Z"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"opensAt": "2026-02-18T18:00:00Z"}, "/opensAt"),
        ({"opensAt": 10**15}, "/opensAt"),
        ({"opensAt": 1, "closesAt": 7}, "/closesAt"),
        ({"opensAt": 1, "closesAt": "2026-02-18 18:00:00Z"}, "/closesAt"),
    ],
)
async def test_a_time_in_another_format_is_named(client: httpx.AsyncClient, body: dict[str, object], pointer: str) -> None:
    problem = check_problem(await client.put("/shops/1", json=body), 422, "invalid")
    assert problem["errors"][0]["pointer"] == pointer


async def test_a_query_in_another_format_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.get("/shops", params={"on": "yesterday", "also": "2026-02-18"}, headers={"X-Known": "now"})
    problem = check_problem(answer, 422, "invalid")
    assert {fault["pointer"]: fault["detail"] for fault in problem["errors"]} == {
        "/on": "expected a time such as 1769860800000, got 'yesterday'",
        "/also": "expected a time such as \"31.01.2026\", got '2026-02-18'",
        "/X-Known": "expected a time such as 1769860800, got 'now'",
    }


async def test_a_name_twice_is_still_refused(client: httpx.AsyncClient) -> None:
    answer = await client.put("/shops/1", content=b'{"opensAt": 1, "opensAt": 2}', headers={"Content-Type": "application/json"})
    check_problem(answer, 400, "malformed")


async def test_the_document_shows_the_format(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    validate(document)
    parameters = document["paths"]["/shops"]["get"]["parameters"]
    assert next(one for one in parameters if one["name"] == "on")["schema"]["type"] == "integer"
    answer = document["paths"]["/shops"]["get"]["responses"]["200"]
    assert answer["headers"]["X-Changed"]["schema"]["type"] == "integer"
    properties = answer["content"]["application/json"]["schema"]["properties"]
    assert (properties["opensAt"]["type"], properties["closesAt"]["format"]) == ("integer", "date-time")
