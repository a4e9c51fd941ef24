"""What a handler may do in its transaction, what follows the commit, and compensations, in every topology."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from runtime import (
    ANYONE,
    ConstraintError,
    Context,
    Contract,
    DeadlineExceeded,
    Event,
    InternalError,
    Request,
    Service,
    ServiceError,
    Signal,
    Transaction,
    UsageError,
    handles,
    subscribes,
)
from runtime.testing import eventually
from tests.topology import Topology

notebook = Contract("notebook")
shelf = Contract("shelf")


@notebook.message
class Write(Request[int]):
    text: str
    behaviour: str = ""


@notebook.message
class Written(Signal):
    text: str


@notebook.message
class Filed(Event):
    text: str


@shelf.message
class Put(Request[str]):
    text: str


@shelf.message
class Remove(Request[None]):
    text: str


@shelf.message
class NoRoom(ServiceError):
    """The shelf is full."""

    code, status = "no-room", 409


class Notebook(Service):
    contract = notebook
    calls = (shelf,)

    async def on_start(self, ctx: Context) -> None:
        async with self.db.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT UNIQUE)")

    @handles(allow=ANYONE, raises=(NoRoom,))
    async def write(self, message: Write, ctx: Context, tx: Transaction) -> int:
        match message.behaviour:
            case "request afterwards":
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                await ctx.request(Put(message.text))
            case "nested transaction":
                async with self.db.transaction() as other:
                    await other.execute("INSERT INTO notes VALUES ($1)", message.text)
            case "autocommit inside":
                await self.db.execute("INSERT INTO notes VALUES ($1)", message.text)
            case "publish an event as a signal":
                await ctx.publish(Filed(message.text))  # type: ignore[arg-type]
            case "publish a signal as an event":
                await tx.publish(Written(message.text))  # type: ignore[arg-type]
            case "put, then fail":
                for part in message.text:
                    ctx.undo(Remove(await ctx.request(Put(part))))
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                raise RuntimeError("after the puts")
            case "put, then break a constraint":
                ctx.undo(Remove(await ctx.request(Put(message.text))))
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
            case "put, then hang":
                ctx.undo(Remove(await ctx.request(Put(message.text))))
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                await asyncio.Event().wait()
            case "survive a broken constraint":
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                with pytest.raises(ConstraintError):
                    await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
            case "keep the transaction":
                self.kept = tx
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
            case "many tasks":
                async with asyncio.TaskGroup() as group:
                    for part in message.text:
                        group.create_task(tx.execute("INSERT INTO notes VALUES ($1)", part))
            case "leave a task behind" | "leave a task behind, then fail":
                self.left = asyncio.create_task(self._write_later(message.text))
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                await asyncio.sleep(0)  # the task begins
                if message.behaviour.endswith("fail"):
                    raise NoRoom
            case _:
                ctx.undo(Remove(await ctx.request(Put(message.text))))
                await ctx.publish(Written(message.text))
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                await tx.publish(Filed(message.text))
                await asyncio.sleep(0.02)
                assert RECEIVED == [], "signals are sent after the commit"
        return 1

    async def _write_later(self, text: str) -> list[str]:
        """Write as soon as that is allowed, and return the hints that come before."""
        hints: list[str] = []
        while True:
            try:
                async with self.db.transaction() as tx:
                    await tx.execute("INSERT INTO notes VALUES ($1)", f"{text}, later")
                    await tx.publish(Filed(text))
                await self.db.execute("INSERT INTO notes VALUES ($1)", f"{text}, afterwards")
            except UsageError as error:
                hints.append(str(error))
                await asyncio.sleep(0)
            else:
                return hints


RECEIVED: list[str] = []


class Shelf(Service):
    contract = shelf

    def __init__(self) -> None:
        self.history: list[str] = []

    @handles(allow=ANYONE, raises=(NoRoom,))
    async def put(self, message: Put, ctx: Context) -> str:
        if message.text == "!":
            raise NoRoom
        self.history.append(f"+{message.text}")
        return message.text

    @handles(allow=ANYONE, idempotent=True)
    async def remove(self, message: Remove, ctx: Context) -> None:
        self.history.append(f"-{message.text}")

    @subscribes
    async def on_written(self, signal: Written, ctx: Context) -> None:
        RECEIVED.append(signal.text)


async def notes(topology: Topology) -> list[Any]:
    service = topology.service(Notebook)
    return [row["text"] for row in await service.db.fetch("SELECT text FROM notes ORDER BY rowid")]


@pytest.fixture(autouse=True)
def no_signals_received() -> None:
    RECEIVED.clear()


async def test_rows_events_and_the_reply_commit_together_and_signals_follow(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    assert await ctx.request(Write("a")) == 1
    await eventually(lambda: RECEIVED == ["a"], "the signal arrives after the commit")
    assert await notes(topology) == ["a"]
    assert [row["type"] for row in await topology.service(Notebook).db.fetch("SELECT type FROM callboard_stream")] == [
        "notebook.Filed"
    ]
    assert topology.service(Shelf).history == ["+a"], "nothing was undone"


async def test_a_transaction_that_does_not_commit_publishes_nothing_and_is_compensated_in_reverse(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    with pytest.raises(InternalError):
        await ctx.request(Write("abc", "put, then fail"))
    assert topology.service(Shelf).history == ["+a", "+b", "+c", "-c", "-b", "-a"], "the requests are undone in reverse order"
    assert await notes(topology) == []
    assert await topology.service(Notebook).db.fetch("SELECT * FROM callboard_stream") == []
    assert RECEIVED == []


async def test_an_error_of_a_callee_undoes_the_requests_before_it(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook, shelf)
    with pytest.raises(NoRoom):
        await ctx.request(Write("ab!", "put, then fail"))
    assert topology.service(Shelf).history == ["+a", "+b", "-b", "-a"]


async def test_a_broken_constraint_that_is_not_caught_undoes_everything(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    with pytest.raises(InternalError):
        await ctx.request(Write("a", "put, then break a constraint"))
    assert topology.service(Shelf).history == ["+a", "-a"]
    assert await notes(topology) == []


async def test_a_broken_constraint_that_is_caught_undoes_only_its_statement(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    assert await ctx.request(Write("a", "survive a broken constraint")) == 1
    assert await notes(topology) == ["a"]


async def test_a_deadline_undoes_everything(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Write("a", "put, then hang"), timeout=0.1)
    shelf_service = topology.service(Shelf)
    await eventually(lambda: shelf_service.history == ["+a", "-a"], "the request is undone")
    assert await notes(topology) == []
    assert await ctx.request(Write("b")) == 1, "the writer is free again"


async def test_a_caller_that_stops_waiting_undoes_everything(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    shelf_service = topology.service(Shelf)
    task = asyncio.create_task(ctx.request(Write("a", "put, then hang")))
    await eventually(lambda: shelf_service.history == ["+a"], "the shelf has handled the request")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: shelf_service.history == ["+a", "-a"], "the request is undone")
    assert await notes(topology) == []


@pytest.mark.parametrize(
    ("behaviour", "what"),
    [
        ("request afterwards", "make requests first, write afterwards"),
        ("nested transaction", "use the handler's tx"),
        ("autocommit inside", "use the handler's tx"),
        ("publish an event as a signal", "an Event goes through tx.publish"),
        ("publish a signal as an event", "a Signal goes through ctx.publish"),
    ],
)
async def test_wrong_use_of_a_transaction_fails_the_request_and_names_the_remedy(
    one_node: Topology, behaviour: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    await one_node.start(Shelf, Notebook)
    ctx = await one_node.client(notebook)
    with pytest.raises(InternalError):
        await ctx.request(Write("a", behaviour))
    assert what in caplog.text
    assert await notes(one_node) == []
    assert one_node.service(Shelf).history == []


async def test_a_transaction_ends_with_its_handler(one_node: Topology) -> None:
    await one_node.start(Shelf, Notebook)
    ctx = await one_node.client(notebook)
    await ctx.request(Write("a", "keep the transaction"))
    with pytest.raises(Exception, match="this transaction has ended"):
        await one_node.service(Notebook).kept.execute("DELETE FROM notes")


@pytest.mark.parametrize("behaviour", ["leave a task behind", "leave a task behind, then fail"])
async def test_a_task_that_a_handler_leaves_behind_has_its_own_transactions(one_node: Topology, behaviour: str) -> None:
    await one_node.start(Shelf, Notebook)
    ctx = await one_node.client(notebook, shelf)
    try:
        await ctx.request(Write("a", behaviour))
    except NoRoom:
        committed = []
    else:
        committed = ["a"]
    hints = await asyncio.wait_for(one_node.service(Notebook).left, 30)
    assert "use the handler's tx" in hints[0], "while the handler runs"
    assert await notes(one_node) == [*committed, "a, later", "a, afterwards"]
    assert len(await one_node.service(Notebook).db.fetch("SELECT * FROM callboard_stream")) == 1


async def test_events_of_any_transaction_are_published(one_node: Topology) -> None:
    await one_node.start(Shelf, Notebook)
    async with one_node.service(Notebook).db.transaction() as tx:
        await tx.publish(Filed("outside of a handler"))
    rows = await one_node.service(Notebook).db.fetch("SELECT body FROM callboard_stream")
    assert [row["body"] for row in rows] == ['{"text":"outside of a handler"}']


async def test_tasks_of_a_handler_share_its_transaction(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    await ctx.request(Write("abcdef", "many tasks"))
    assert sorted(await notes(topology)) == list("abcdef")


async def test_a_hundred_concurrent_requests_all_commit(topology: Topology) -> None:
    await topology.start(Shelf, Notebook)
    ctx = await topology.client(notebook)
    await asyncio.gather(*(ctx.request(Write(f"n{number}", "survive a broken constraint")) for number in range(100)))
    assert len(await notes(topology)) == 100


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    for expected in (["a"], ["a", "b"]):
        topology = Topology("one-node-serialized", tmp_path)
        await topology.start(Shelf, Notebook)
        ctx = await topology.client(notebook)
        await ctx.request(Write(expected[-1]))
        assert await notes(topology) == expected
        await eventually(lambda: len(RECEIVED) == 1, "the signal that follows the commit has arrived")
        RECEIVED.clear()
        await topology.close()
