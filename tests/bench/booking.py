"""A booking that holds money, reserves, and books: three services, keyed, exactly once, on PostgreSQL; beside a DBOS workflow of three steps.

    python -m tests.bench.booking --dbos PATH/OF/A/PYTHON/WITH/dbos

Both use the same private server, with its defaults (each commit is on disk), in turn. Each of the three steps writes one row. The
figures are bookings per second of 32 clients that wait for each other's turns alone, and the 99th percentile of the time that a
booking takes while 60 % of that many come.
"""

import argparse
import asyncio
import inspect
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from runtime import (
    ANYONE,
    SERVICES,
    Context,
    Contract,
    Database,
    Node,
    NodeSettings,
    Random,
    Request,
    Service,
    Struct,
    Transaction,
    handles,
)
from runtime.storage.postgres import PostgresDatabase
from tests.bench.figures import report
from tests.postgres import Postgres
from transports.memory import MemoryNetwork, MemoryTransport

CLIENTS = 32
money, stock, booking = Contract("money"), Contract("stock"), Contract("booking")


class Done(Struct):
    id: str


@money.message
class Hold(Request[Done]):
    item: str


@stock.message
class Reserve(Request[Done]):
    item: str


@booking.message
class Book(Request[Done]):
    item: str


class Writer:
    """Writes a row. Mixed into each of the three services."""

    db: Database
    random: Random

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, item TEXT)")

    async def write(self, item: str, tx: Transaction) -> Done:
        id = str(self.random.uuid7())
        await tx.execute("INSERT INTO rows VALUES ($1, $2)", id, item)
        return Done(id)


class Money(Writer, Service):
    contract = money

    @handles(allow=SERVICES, once=True)
    async def hold(self, message: Hold, ctx: Context, tx: Transaction) -> Done:
        return await self.write(message.item, tx)


class Stock(Writer, Service):
    contract = stock

    @handles(allow=SERVICES, once=True)
    async def reserve(self, message: Reserve, ctx: Context, tx: Transaction) -> Done:
        return await self.write(message.item, tx)


class Booking(Writer, Service):
    contract = booking
    calls = (money, stock)

    @handles(allow=ANYONE, once=True)
    async def book(self, message: Book, ctx: Context, tx: Transaction) -> Done:
        await ctx.request(Hold(message.item))
        await ctx.request(Reserve(message.item))
        return await self.write(message.item, tx)


_DBOS = """
import asyncio, json, random, statistics, sys, time, uuid
import psycopg_pool
from dbos import DBOS, SetWorkflowID

url, seconds, clients = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False, "sys_db_pool_size": 20})
pool = psycopg_pool.AsyncConnectionPool(url, min_size=8, max_size=16, open=False, kwargs={"autocommit": True})

async def write(table, item):
    async with pool.connection() as connection:
        await connection.execute(f"INSERT INTO {table} VALUES (%s, %s)", (str(uuid.uuid4()), item))

@DBOS.step()
async def hold(item):
    await write("held", item)

@DBOS.step()
async def reserve(item):
    await write("reserved", item)

@DBOS.step()
async def book(item):
    await write("booked", item)

@DBOS.workflow()
async def booking(item):
    await hold(item)
    await reserve(item)
    await book(item)

async def one():
    with SetWorkflowID(str(uuid.uuid4())):
        await booking("x")

MEASURE

async def main():
    await pool.open()
    async with pool.connection() as connection:
        for table in ("held", "reserved", "booked"):
            await connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY, item TEXT)")
    DBOS.launch()
    print(json.dumps(await measure(one, seconds, clients)))
    await pool.close()
    DBOS.destroy()

asyncio.run(main())
"""


async def measure(one: "Callable[[], Awaitable[object]]", seconds: float, clients: int) -> "tuple[float, float]":
    """Return how many calls a second some clients make, and the 99th percentile in seconds at 60 % of that."""
    loop = asyncio.get_running_loop()

    async def until(end: float) -> int:
        count = 0
        while loop.time() < end:
            await one()
            count += 1
        return count

    await asyncio.gather(*(until(loop.time() + 2) for _ in range(clients)))
    began = loop.time()
    rate = sum(await asyncio.gather(*(until(began + seconds) for _ in range(clients)))) / (loop.time() - began)
    took: list[float] = []
    tasks: list[asyncio.Task[None]] = []

    async def timed() -> None:
        start = loop.time()
        await one()
        took.append(loop.time() - start)

    rng, due, end = random.Random(1), loop.time(), loop.time() + seconds
    while due < end:
        await asyncio.sleep(max(due - loop.time(), 0))
        tasks.append(asyncio.create_task(timed()))
        due += rng.expovariate(0.6 * rate)
    await asyncio.gather(*tasks)
    return rate, statistics.quantiles(took, n=100)[98]


async def ours(url: str, seconds: float) -> tuple[float, float]:
    """Measure the three services, each on a node of its own."""
    network = MemoryNetwork()

    def node(service: type[Service]) -> Node:
        return Node(
            [service], MemoryTransport(network), databases=lambda name: PostgresDatabase(url, name), settings=NodeSettings()
        )

    async with node(Money), node(Stock), node(Booking) as last:
        await last.registry.wait_for("money", "stock")
        ctx = last.client("bench", (booking,))

        async def one() -> None:
            await ctx.request(Book("x"), key=last.environment.random.hex(32))

        return await measure(one, seconds, CLIENTS)


def dbos(python: str, url: str, seconds: float) -> tuple[float, float]:
    """Measure the workflow, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "workflow.py"
        script.write_text(_DBOS.replace("MEASURE", inspect.getsource(measure)))
        command = [python, str(script), url, str(seconds), str(CLIENTS)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rate, p99 = json.loads(done.stdout.strip().splitlines()[-1])
        return rate, p99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dbos", default="", help="a Python with dbos and psycopg[binary,pool]")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    server = Postgres()
    server.start()
    try:
        rounds: list[tuple[tuple[float, float], tuple[float, float] | None]] = []
        for _ in range(chosen.rounds):
            own = asyncio.run(ours(server.new_database(), chosen.seconds))
            other = dbos(chosen.dbos, server.new_database(), chosen.seconds) if chosen.dbos else None
            rounds.append((own, other))
        for name, index in (("booking", 0), ("booking_dbos", 1)):
            found = [one[index] for one in rounds]
            if all(one is not None for one in found):
                report(name, statistics.median(one[0] for one in found if one), "bookings a second")
                report(f"{name}_p99", statistics.median(one[1] for one in found if one) * 1000, "ms at 60 % of them")
    finally:
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
