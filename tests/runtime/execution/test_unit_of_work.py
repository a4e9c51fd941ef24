"""What a handler may do in its transaction, what follows the commit, and compensations: on every topology."""

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
    handles,
    subscribes,
)
from runtime.testing import eventually
from tests.topology import Topology

request_handler = Contract("request_handler")
shelf = Contract("shelf")


@request_handler.message
class Write(Request[int]):
    text: str
    behaviour: str = ""


@request_handler.message
class Written(Signal):
    text: str


@request_handler.message
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


class RequestHandler(Service):
    contract = request_handler
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
            case _:
                ctx.undo(Remove(await ctx.request(Put(message.text))))
                await ctx.publish(Written(message.text))
                await tx.execute("INSERT INTO notes VALUES ($1)", message.text)
                await tx.publish(Filed(message.text))
                await asyncio.sleep(0.02)
                assert self_heard(ctx) == [], "signals wait for the commit"
        return 1


HEARD: list[str] = []


def self_heard(ctx: Context) -> list[str]:
    return HEARD


class Shelf(Service):
    contract = shelf

    def __init__(self) -> None:
        self.log_of: list[str] = []

    @handles(allow=ANYONE, raises=(NoRoom,))
    async def put(self, message: Put, ctx: Context) -> str:
        if message.text == "!":
            raise NoRoom
        self.log_of.append(f"+{message.text}")
        return message.text

    @handles(allow=ANYONE, idempotent=True)
    async def remove(self, message: Remove, ctx: Context) -> None:
        self.log_of.append(f"-{message.text}")

    @subscribes
    async def on_written(self, signal: Written, ctx: Context) -> None:
        HEARD.append(signal.text)


async def notes(topology: Topology) -> list[Any]:
    desk_service = topology.service(RequestHandler)
    return [row["text"] for row in await desk_service.db.fetch("SELECT text FROM notes ORDER BY rowid")]


@pytest.fixture(autouse=True)
def silence() -> None:
    HEARD.clear()


async def test_row_event_and_reply_commit_together_and_signals_follow(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    assert await ctx.request(Write("a")) == 1
    await eventually(lambda: HEARD == ["a"], "the signal comes after the commit")
    assert await notes(topology) == ["a"]
    assert [row["type"] for row in await topology.service(RequestHandler).db.fetch("SELECT type FROM callboard_stream")] == [
        "request_handler.Filed"
    ]
    assert topology.service(Shelf).log_of == ["+a"], "nothing was undone"


async def test_nothing_follows_a_transaction_that_does_not_commit(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    with pytest.raises(InternalError):
        await ctx.request(Write("abc", "put, then fail"))
    assert topology.service(Shelf).log_of == ["+a", "+b", "+c", "-c", "-b", "-a"], "undone in reverse"
    assert await notes(topology) == []
    assert await topology.service(RequestHandler).db.fetch("SELECT * FROM callboard_stream") == []
    assert HEARD == []


async def test_what_was_done_before_an_error_of_a_callee_is_undone(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler, shelf)
    with pytest.raises(NoRoom):
        await ctx.request(Write("ab!", "put, then fail"))
    assert topology.service(Shelf).log_of == ["+a", "+b", "-b", "-a"]


async def test_a_broken_constraint_that_is_not_caught_undoes_all(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    with pytest.raises(InternalError):
        await ctx.request(Write("a", "put, then break a constraint"))
    assert topology.service(Shelf).log_of == ["+a", "-a"]
    assert await notes(topology) == []


async def test_a_broken_constraint_that_is_caught_undoes_its_statement(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    assert await ctx.request(Write("a", "survive a broken constraint")) == 1
    assert await notes(topology) == ["a"]


async def test_the_deadline_undoes_all(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    with pytest.raises(DeadlineExceeded):
        await ctx.request(Write("a", "put, then hang"), timeout=0.1)
    shelf_service = topology.service(Shelf)
    await eventually(lambda: shelf_service.log_of == ["+a", "-a"], "it is undone")
    assert await notes(topology) == []
    assert await ctx.request(Write("b")) == 1, "and the writer is free"


async def test_who_goes_away_undoes_all(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    shelf_service = topology.service(Shelf)
    task = asyncio.create_task(ctx.request(Write("a", "put, then hang")))
    await eventually(lambda: shelf_service.log_of == ["+a"], "it has put")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: shelf_service.log_of == ["+a", "-a"], "it is undone")
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
async def test_wrong_use_fails_the_message_and_says_what_to_do(
    one_node: Topology, behaviour: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    await one_node.play(Shelf, RequestHandler)
    ctx = await one_node.client(request_handler)
    with pytest.raises(InternalError):
        await ctx.request(Write("a", behaviour))
    assert what in caplog.text
    assert await notes(one_node) == []
    assert one_node.service(Shelf).log_of == []


async def test_a_transaction_ends_with_its_handler(one_node: Topology) -> None:
    await one_node.play(Shelf, RequestHandler)
    ctx = await one_node.client(request_handler)
    await ctx.request(Write("a", "keep the transaction"))
    with pytest.raises(Exception, match="this transaction has ended"):
        await one_node.service(RequestHandler).kept.execute("DELETE FROM notes")


async def test_events_of_any_transaction_are_published(one_node: Topology) -> None:
    await one_node.play(Shelf, RequestHandler)
    async with one_node.service(RequestHandler).db.transaction() as tx:
        await tx.publish(Filed("outside of a handler"))
    rows = await one_node.service(RequestHandler).db.fetch("SELECT body FROM callboard_stream")
    assert [row["body"] for row in rows] == ['{"text":"outside of a handler"}']


async def test_tasks_of_a_handler_share_its_transaction(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    await ctx.request(Write("abcdef", "many tasks"))
    assert sorted(await notes(topology)) == list("abcdef")


async def test_a_hundred_at_once_all_commit(topology: Topology) -> None:
    await topology.play(Shelf, RequestHandler)
    ctx = await topology.client(request_handler)
    await asyncio.gather(*(ctx.request(Write(f"n{number}", "survive a broken constraint")) for number in range(100)))
    assert len(await notes(topology)) == 100


async def test_state_is_there_after_a_restart(tmp_path: Path) -> None:
    for expected in (["a"], ["a", "b"]):
        topology = Topology("one-node-serialized", tmp_path)
        await topology.play(Shelf, RequestHandler)
        ctx = await topology.client(request_handler)
        await ctx.request(Write(expected[-1]))
        assert await notes(topology) == expected
        await eventually(lambda: len(HEARD) == 1, "the signal that followed the commit has come")
        HEARD.clear()
        await topology.close()
