"""A rolling upgrade under load: instances of two versions side by side, on PostgreSQL, in the order that docs/deployment.md gives."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from runtime.sockets import any_free_port
from runtime.storage.postgres import PostgresDatabase
from runtime.testing import eventually
from tests.broker import Broker
from tests.postgres import shared_postgres
from tests.system.process import Callboard

SHOP = """
from typing import Literal
from runtime import ANYONE, Context, Contract, Event, Request, Service, Struct, Transaction, handles

shop = Contract("shop")

class Order(Struct):
    id: str
    kind: Literal[{kinds}]
    {order_field}

@shop.message
class PlaceOrder(Request[Order]):
    item: str
    {request_field}

@shop.message
class OrderPlaced(Event):
    order_id: str
    kind: Literal[{kinds}]

{more_messages}

class Shop(Service):
    contract = shop
    version = {version}

    @handles(http="POST /orders", status=201, allow=ANYONE, once=True)
    async def place(self, message: PlaceOrder, ctx: Context, tx: Transaction) -> Order:
        order_id = str(self.random.uuid7())
        kind = {kind}
        await tx.publish(OrderPlaced(order_id, kind))
        {publish_more}
        return Order(order_id, kind)

    {more_handlers}
"""
OLD = {
    "kinds": '"normal"', "order_field": "", "request_field": "", "more_messages": "", "version": '"1"', "kind": '"normal"',
    "publish_more": "", "more_handlers": "",
}  # fmt: skip
NEW = {
    "kinds": '"normal", "gift"',
    "order_field": 'note: str = ""',
    "request_field": "gift: bool = False",
    "more_messages": '''
@shop.message
class OrderWrapped(Event):
    order_id: str

@shop.message
class CountKinds(Request[None]):
    """A request that only the new version has."""
''',
    "version": '"2"',
    "kind": '"gift" if message.gift else "normal"',
    "publish_more": "if message.gift: await tx.publish(OrderWrapped(order_id))",
    "more_handlers": """
    @handles(http="GET /kinds", allow=ANYONE)
    async def count(self, message: CountKinds, ctx: Context) -> None:
        return None
""",
}
MAIL = """
from pathlib import Path
from runtime import Context, Contract, Service, Transaction, subscribes
import shop_service as shop

mail = Contract("mail")

class Mail(Service):
    contract = mail
    calls = (shop.shop,)
    migrations = Path(__file__).parent / "migrations"

    @subscribes
    async def on_order_placed(self, event: shop.OrderPlaced, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO sent (order_id, kind) VALUES ($1, $2)", event.order_id, event.kind)
"""
NEW_MAIL = """
    @subscribes
    async def on_order_wrapped(self, event: shop.OrderWrapped, ctx: Context, tx: Transaction) -> None:
        await tx.execute("INSERT INTO sent (order_id, kind) VALUES ($1, 'wrapped')", event.order_id)
"""


def write_version(folder: Path, version: dict[str, str], mail: str) -> None:
    (folder / "migrations").mkdir(parents=True)
    (folder / "migrations" / "0001_sent.sql").write_text(
        "CREATE TABLE sent (number BIGINT GENERATED ALWAYS AS IDENTITY, order_id TEXT, kind TEXT);"
    )
    (folder / "shop_service.py").write_text(SHOP.format(**version))
    (folder / "mail_service.py").write_text(mail)


class Fleet:
    """Instances of both services, of either version, and the gateway."""

    def __init__(self, old: Path, new: Path, broker: Broker, url: str) -> None:
        self.folders = {"old": old, "new": new}
        self.port = any_free_port()
        self._environment = {
            "CALLBOARD_SERVICES": "shop_service:Shop,mail_service:Mail", "CALLBOARD_TRANSPORT__KIND": "mqtt",
            "CALLBOARD_TRANSPORT__MQTT__URL": broker.url, "CALLBOARD_DATABASE__URL": url, "CALLBOARD_GATEWAY__PORT": str(self.port),
            "CALLBOARD_GATEWAY__EXPECTS": "shop", "CALLBOARD_GATEWAY__DRAIN_DELAY": "1", "CALLBOARD_GATEWAY__SHARE_PORT": "true",
        }  # fmt: skip

    @asynccontextmanager
    async def instance(self, service: str, version: str) -> AsyncGenerator[Callboard, None]:
        """Run an instance, which is stopped at the end as an orchestrator stops it."""
        async with Callboard(self.folders[version], "run", service, **self._environment) as running:
            await running.says(f": {service}")
            yield running
            assert await running.ends(signal.SIGTERM) == 0, running.output


@pytest.mark.long
async def test_every_service_is_upgraded_under_load_and_no_request_fails(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_version(old, OLD, MAIL)
    write_version(new, NEW, MAIL + NEW_MAIL)
    url = shared_postgres().new_database()
    failed: list[Any] = []
    placed: list[str] = []
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(tmp_path))
        fleet = Fleet(old, new, broker, url)
        stacks = [
            (name, await stack.enter_async_context(AsyncExitStack())) for name in ("mail", "mail", "shop", "shop", "gateway")
        ]
        for name, own in stacks:
            await own.enter_async_context(fleet.instance(name, "old"))
        done = asyncio.Event()
        client = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{fleet.port}"))

        async def place(**more: Any) -> tuple[int, Any]:
            async with client.post("/orders", json={"item": "x", **more}) as answer:
                found = answer.status, await answer.json(content_type=None)
            if found[0] == 201:
                placed.append(found[1]["id"])
            return found

        async def load() -> None:
            while not done.is_set():
                try:
                    found = await place()
                    if found[0] != 201:
                        failed.append(found)
                except aiohttp.ClientError as error:
                    failed.append(repr(error))
                await asyncio.sleep(0.02)

        async def is_ready() -> bool:
            try:
                async with client.get("/readyz") as answer:
                    return answer.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(is_ready, "the gateway knows the shop", 30)
        loading = asyncio.create_task(load())
        for name, own in stacks:  # subscribers first, then the services whose events they apply, then the gateway
            await stack.enter_async_context(fleet.instance(name, "new"))
            await own.aclose()
        done.set()
        await loading
        assert failed == [], f"{len(failed)} failed of {len(placed)}"
        assert len(placed) > 100

        # the new version's field, request, event, and member of an enum
        status, order = await place(gift=True)
        assert (status, order["kind"], order["note"]) == (201, "gift", "")

        async def has_route() -> bool:
            async with client.get("/kinds") as answer:
                return answer.status == 204

        await eventually(has_route, "the gateway knows the new route")
        database = PostgresDatabase(url, "mail")
        await database.open()
        stack.push_async_callback(database.close)

        async def all_sent() -> bool:
            rows = await database.fetch("SELECT order_id, kind FROM sent ORDER BY number")
            wanted = [(one, "normal") for one in placed[:-1]] + [(placed[-1], "gift"), (placed[-1], "wrapped")]
            return sorted((row["order_id"], row["kind"]) for row in rows) == sorted(wanted)

        await eventually(all_sent, "each event was applied once", 30)


@pytest.mark.long
async def test_events_of_a_new_publisher_wait_for_a_new_subscriber(tmp_path: Path) -> None:
    """The other order: nothing is lost, and what the old version cannot decode waits."""
    old, new = tmp_path / "old", tmp_path / "new"
    write_version(old, OLD, MAIL)
    write_version(new, NEW, MAIL + NEW_MAIL)
    url = shared_postgres().new_database()
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(tmp_path))
        fleet = Fleet(old, new, broker, url)
        await stack.enter_async_context(fleet.instance("mail", "old"))
        await stack.enter_async_context(fleet.instance("shop", "new"))
        await stack.enter_async_context(fleet.instance("gateway", "new"))
        client = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{fleet.port}"))
        placed: list[str] = []

        async def place(*, gift: bool) -> bool:
            try:
                async with client.post("/orders", json={"item": "x", "gift": gift}) as answer:
                    if answer.status == 201:
                        placed.append((await answer.json())["id"])
                    return answer.status == 201
            except aiohttp.ClientError:
                return False

        await eventually(lambda: place(gift=False), "an order", 30)
        for gift in (True, False, True):
            assert await place(gift=gift)
        database = PostgresDatabase(url, "mail")
        await database.open()
        stack.push_async_callback(database.close)

        async def sent() -> list[str]:
            return [
                row["order_id"]
                for row in await database.fetch("SELECT order_id FROM sent WHERE kind <> 'wrapped' ORDER BY number")
            ]

        async def first_is_sent() -> bool:
            return await sent() == placed[:1]

        await eventually(first_is_sent, "the old version applies what it knows, and waits at the gift", 30)
        await stack.enter_async_context(fleet.instance("mail", "new"))

        async def all_sent() -> bool:
            return await sent() == placed

        await eventually(all_sent, "the new version applies the rest, in order", 30)
