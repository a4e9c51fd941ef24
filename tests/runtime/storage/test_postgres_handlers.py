"""What a handler and its caller see of PostgreSQL's conflicts, and of a commit whose outcome is unknown."""

import asyncio
from collections.abc import Sequence

import pytest

from runtime import ANYONE, Context, Contract, DatabaseUnavailable, Node, Request, Service, Transaction, handles
from runtime.storage.postgres import PostgresDatabase
from runtime.testing import eventually
from tests.postgres import Postgres, shared_postgres
from tests.transports.proxy import Proxy
from transports.memory import MemoryTransport

notes = Contract("notes")


@notes.message
class Write(Request[int]):
    """Writes two rows in this order."""

    ids: tuple[int, ...]


@notes.message
class Undo(Request[None]):
    pass


class Notes(Service):
    contract = notes
    runs = undone = 0

    async def on_start(self, ctx: Context) -> None:
        await self.db.execute("CREATE TABLE IF NOT EXISTS notes (id BIGINT PRIMARY KEY, count BIGINT NOT NULL)")
        await self.db.execute("INSERT INTO notes VALUES (1, 0), (2, 0) ON CONFLICT DO NOTHING")

    @handles(allow=ANYONE)
    async def write(self, message: Write, ctx: Context, tx: Transaction) -> int:
        self.runs += 1
        ctx.undo(Undo())
        for number in message.ids:
            await tx.execute("UPDATE notes SET count = count + 1 WHERE id = $1", number)
            await tx.fetch("SELECT pg_sleep(0.3)")
        return self.runs

    @handles(allow=ANYONE)
    async def undo(self, message: Undo, ctx: Context) -> None:
        self.undone += 1


async def counts(database: PostgresDatabase) -> Sequence[int]:
    return [row["count"] for row in await database.fetch("SELECT count FROM notes ORDER BY id")]


async def test_a_handler_that_is_in_a_deadlock_runs_again() -> None:
    server, service = shared_postgres(), Notes()
    url = server.new_database()
    name = url.rpartition("/")[2]
    server.run(f"ALTER DATABASE {name} SET deadlock_timeout = '100ms'")
    async with Node([lambda: service], MemoryTransport(), databases=lambda name: PostgresDatabase(url, name)) as node:
        asked = asyncio.create_task(node.client("test", (notes,)).request(Write((1, 2))))
        await eventually(lambda: service.runs == 1, "the handler runs")
        # Somebody at a console takes the same rows in the other order
        other = "BEGIN; UPDATE notes.notes SET count = count + 10 WHERE id = 2; SELECT pg_sleep(0.2); UPDATE notes.notes SET count = count + 10 WHERE id = 1; COMMIT"
        await asyncio.gather(asyncio.to_thread(server.run, f"SET deadlock_timeout = '10s'; {other}", name))
        assert await asked == 2
        assert service.undone == 0
        database = node.inbound.instances["notes"].database
        assert isinstance(database, PostgresDatabase)
        assert await counts(database) == [11, 11]


async def test_nothing_is_undone_if_the_outcome_of_a_commit_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.storage.postgres._RESOLVE_SECONDS", 0.5)
    server, service = Postgres("fsync=off"), Notes()
    server.start()
    try:
        url = server.new_database()
        async with Proxy(server.port) as proxy:
            through = url.replace(str(server.port), str(proxy.port))
            async with Node([lambda: service], MemoryTransport(), databases=lambda name: PostgresDatabase(through, name)) as node:
                server.run(
                    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$; "
                    "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON notes.notes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()",
                    url.rpartition("/")[2],
                )
                asked = asyncio.create_task(node.client("test", (notes,)).request(Write((1,))))
                commits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%COMMIT' AND state = 'active'"
                await eventually(lambda: asyncio.to_thread(lambda: server.run(commits) == "1"), "the commit runs")
                await proxy.refuse()
                proxy.cut()
                with pytest.raises(DatabaseUnavailable) as caught:
                    await asked
                assert caught.value.maybe_delivered
                assert service.undone == 0
                await proxy.listen()
    finally:
        server.stop()
