"""Idempotency keys on a route for everybody: a key belongs to the user who sends it."""

from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import httpx
import pytest

from gateway.service import Gateway
from gateway.settings import GatewaySettings
from runtime import ANYONE, Context, Contract, Node, NodeSettings, Request, Service, Struct, Transaction, handles
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import FakeAuth
from tests.gateway.environment import TOPOLOGIES, check_problem
from transports.memory import MemoryNetwork, MemorySettings, MemoryTransport

shop = Contract("shop")


class Receipt(Struct):
    number: int
    buyer: str | None


@shop.message
class Order(Request[Receipt]):
    what: str


class Shop(Service):
    contract = shop

    def __init__(self) -> None:
        self.orders = 0

    @handles(http="POST /orders", allow=ANYONE, once=True)
    async def order(self, message: Order, ctx: Context, tx: Transaction) -> Receipt:
        self.orders += 1
        return Receipt(self.orders, None if ctx.identity is None else ctx.identity.subject)


@pytest.fixture(params=TOPOLOGIES)
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient, None]:
    network, transport = MemoryNetwork(), MemorySettings(zero_copy=request.param.endswith("zero-copy"))
    gateway = Gateway(GatewaySettings(port=0))
    own: list[Callable[[], Service]] = [FakeAuth, Shop, lambda: gateway] if request.param != "apart" else [FakeAuth, Shop]
    options = NodeSettings(drain_timeout=1)
    folder = SqliteFolder(tmp_path, durable=False)
    async with Node(own, MemoryTransport(network, transport), databases=folder, settings=options) as node:
        if request.param == "apart":
            async with Node([lambda: gateway], MemoryTransport(network, transport), settings=options) as other:
                await other.registry.wait_for("shop", "auth")
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as made:
                    yield made
        else:
            await node.registry.wait_for("shop", "auth")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=10, verify=False) as made:
                yield made


async def order(client: httpx.AsyncClient, *, token: str | None = None, key: str | None = "monday") -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return await client.post("/orders", json={"what": "tea"}, headers=headers | ({} if key is None else {"Idempotency-Key": key}))


async def test_two_users_with_the_same_key_and_body_get_their_own_replies(client: httpx.AsyncClient) -> None:
    ann, bob = FakeAuth.token("ann", "rider"), FakeAuth.token("bob", "rider")
    replies = [(await order(client, token=token)).json() for token in (ann, bob, ann, FakeAuth.token("ann", "rider"), bob)]
    ann_s, bob_s = {"number": 1, "buyer": "ann"}, {"number": 2, "buyer": "bob"}
    assert replies == [ann_s, bob_s, ann_s, ann_s, bob_s]


async def test_a_key_without_a_valid_token_is_refused_and_has_no_effect(client: httpx.AsyncClient) -> None:
    refused = check_problem(await order(client), 400, "bad-idempotency-key")
    assert "send an access token, or no key" in refused["detail"]
    expired = FakeAuth.token("ann", "rider", seconds=-1)
    check_problem(await order(client, token=expired), 401)
    check_problem(await order(client, token=expired, key=None), 401)
    for number in (1, 2):
        assert (await order(client, token=None, key=None)).json() == {"number": number, "buyer": None}


async def test_the_document_says_that_a_key_needs_a_token(client: httpx.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/orders"]["post"]
    assert operation["security"] == [{}, {"bearer": []}]
    assert "A key needs an access token" in operation["parameters"][-1]["description"]
