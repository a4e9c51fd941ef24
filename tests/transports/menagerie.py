"""A service whose messages have a field of every type that a message may have, and a subscriber of it."""

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from runtime import (
    ANYONE,
    Context,
    Contract,
    Event,
    Request,
    Service,
    ServiceError,
    Signal,
    Struct,
    Transaction,
    handles,
    subscribes,
)
from tests.runtime.contract.shapes import SCALARS, STRUCTS, Cat, Colour, Dog, Level, Page, Renamed, Rights, Row, Tree

menagerie = Contract("menagerie")
keeper = Contract("keeper")


class Everything(Struct, rename="camel"):
    """A value of every kind."""

    whole_number: int
    real_number: float
    is_true: bool
    some_text: str
    some_bytes: bytes
    happened_at: datetime
    on_day: date
    at_time: time
    it_took: timedelta
    known_as: UUID
    it_costs: Decimal
    in_colour: Colour
    on_level: Level
    with_rights: Rights
    as_tree: Tree
    one_of_two: Cat | Dog
    other_names: Renamed
    in_a_row: Row
    as_page: Page[Renamed]
    maybe_all: "tuple[Everything, ...]" = ()


def _everything() -> st.SearchStrategy[Everything]:
    by_type = {str(shape.annotation): shape.values for shape in SCALARS + STRUCTS}
    fields: dict[str, Any] = {
        name: by_type[str(annotation)] for name, annotation in Everything.__annotations__.items() if name != "maybe_all"
    }
    flat = st.builds(Everything, **fields)
    return st.builds(Everything, **fields, maybe_all=st.lists(flat, max_size=1).map(tuple))


everything = _everything()


@menagerie.message
class Echo(Request[Everything]):
    """Return the value."""

    value: Everything


@menagerie.message
class Fail(Request[None]):
    """Raise `Failed` with the value."""

    value: Everything


@menagerie.message
class Tell(Request[None]):
    """Publish `Told` with the value."""

    value: Everything


@menagerie.message
class Call(Request[None]):
    """Publish `Called` with the value, under the key."""

    key: str
    value: Everything


@menagerie.message
class Told(Event):
    """Something was told."""

    value: Everything


@menagerie.message(key="key")
class Called(Signal):
    """Someone called."""

    key: str
    value: Everything


@menagerie.message
class Failed(ServiceError):
    """It failed."""

    code, status = "failed", 409
    value: Everything


class Menagerie(Service):
    """Gives each value back in one of the ways in which values travel."""

    contract = menagerie

    @handles(allow=ANYONE)
    async def echo(self, message: Echo, ctx: Context) -> Everything:
        return message.value

    @handles(allow=ANYONE, raises=(Failed,))
    async def fail(self, message: Fail, ctx: Context) -> None:
        raise Failed(message.value)

    @handles(allow=ANYONE)
    async def tell(self, message: Tell, ctx: Context, tx: Transaction) -> None:
        await tx.publish(Told(message.value))

    @handles(allow=ANYONE)
    async def call(self, message: Call, ctx: Context) -> None:
        await ctx.publish(Called(message.key, message.value))


class Keeper(Service):
    """Remembers the last event and the last signal."""

    contract = keeper
    calls = (menagerie,)

    def __init__(self) -> None:
        self.told: Everything | None = None
        self.called: Called | None = None

    @subscribes
    async def on_told(self, event: Told, ctx: Context, tx: Transaction) -> None:
        self.told = event.value

    @subscribes
    async def on_called(self, signal: Called, ctx: Context) -> None:
        self.called = signal
