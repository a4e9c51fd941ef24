"""A service whose messages are handled by several classes."""

from pathlib import Path

import pytest

from runtime import (
    ANYONE,
    Context,
    Contract,
    DefinitionError,
    Event,
    Node,
    Part,
    Request,
    Service,
    Signal,
    Transaction,
    every,
    handles,
    subscribes,
)
from runtime.storage.sqlite import SqliteFolder
from runtime.testing import eventually
from transports.memory import MemoryNetwork, MemoryTransport

books = Contract("books")
news = Contract("news")


@news.message
class Announced(Event):
    title: str


@news.message
class Rumour(Signal):
    title: str


@news.message
class Announce(Request[None]):
    title: str


@books.message
class Count(Request[int]):
    pass


@books.message
class Titles(Request[tuple[str, ...]]):
    pass


@books.message
class Clear(Request[int]):
    pass


class News(Service):
    contract = news

    @handles(allow=ANYONE)
    async def announce(self, message: Announce, ctx: Context, tx: Transaction) -> None:
        await tx.publish(Announced(message.title))
        await ctx.publish(Rumour(message.title))


class Reports(Part["Books"]):
    @handles(http="GET /count", allow=ANYONE)
    async def count(self, message: Count, ctx: Context) -> int:
        return len(self.service.titles)

    @handles(allow=ANYONE)
    async def clear(self, message: Clear, ctx: Context, tx: Transaction) -> int:
        before = len(self.service.titles)
        self.service.titles.clear()
        return before


class Intake(Part["Books"]):
    def __init__(self, service: "Books") -> None:
        super().__init__(service)
        self.ticks = 0
        self.rumours: list[str] = []
        service.intake = self

    @subscribes
    async def on_announced(self, event: Announced, ctx: Context, tx: Transaction) -> None:
        self.service.titles.append(event.title)

    @subscribes
    async def on_rumour(self, signal: Rumour, ctx: Context) -> None:
        self.rumours.append(signal.title)

    @every(seconds=0.01)
    async def count(self, ctx: Context) -> None:
        self.ticks += 1


class Books(Service):
    contract = books
    calls = (news,)
    parts = (Reports, Intake)
    intake: Intake

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []

    @handles(allow=ANYONE)
    async def list(self, message: Titles, ctx: Context) -> tuple[str, ...]:
        return tuple(self.titles)


async def test_parts_handle_messages_of_every_kind(tmp_path: Path) -> None:
    network = MemoryNetwork()
    async with (
        Node([News], MemoryTransport(network), databases=SqliteFolder(tmp_path)),
        Node([Books], MemoryTransport(network), databases=SqliteFolder(tmp_path)) as node,
    ):
        await node.registry.wait_for("news", "books")
        service = node.service(Books)
        assert service is not None
        ctx = node.client("test", (books, news))
        await ctx.request(Announce("Emma"))
        await eventually(lambda: service.titles == ["Emma"], "the event was applied")
        await eventually(lambda: service.intake.rumours == ["Emma"], "the signal was handled")
        await eventually(lambda: service.intake.ticks > 2, "the timer runs")
        assert (await ctx.request(Count()), await ctx.request(Titles()), await ctx.request(Clear())) == (1, ("Emma",), 1)
        (route,) = [info for member in node.registry.members("books") for info in member.manifest.requests if info.http]
        assert (route.name, route.idempotent) == ("books.Count", True)


def test_a_message_has_one_handler_in_all_parts() -> None:
    with pytest.raises(DefinitionError, match=r"books.Count is handled twice, by count and Reports.count: keep one"):

        class Twice(Books):
            @handles(allow=ANYONE)
            async def count(self, message: Count, ctx: Context) -> int:
                return 0


def test_a_mistake_in_a_part_names_the_part() -> None:
    class Faulty(Part[Service]):
        @handles(allow=ANYONE)  # type: ignore[type-var]  # the mistake under test
        def clear(self, message: Clear, ctx: Context) -> int:
            return 0

    with pytest.raises(DefinitionError, match=r"test_parts.py:\d+: .*Faulty.clear: a handler is an `async def`"):
        type("Broken", (Service,), {"contract": Contract("broken"), "parts": (Faulty,)})


@pytest.mark.parametrize("parts", [Reports, (Service,), ("Reports",), None])
def test_parts_are_a_tuple_of_parts(parts: object) -> None:
    with pytest.raises(DefinitionError, match="expected a tuple of subclasses of Part"):
        type("Broken", (Service,), {"contract": Contract("broken"), "parts": parts})
