"""A service for the gateway's tests that behaves as its requests specify."""

import asyncio
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta

from runtime import ANYONE, Context, Contract, InstanceLost, Overloaded, Request, Service, ServiceError, Struct, handles, roles

probe = Contract("probe")


class Inner(Struct):
    number: int


class Seen(Struct):
    """What the service received."""

    path: str = ""
    text: str | None = None
    number: int | None = None
    ratio: float | None = None
    flag: bool | None = None
    kind: Literal["a", "b"] | None = None
    uuid: UUID | None = None
    tags: tuple[str, ...] = ()
    trace: str = ""
    budget: float = 0.0


@probe.message
class Look(Request[Seen]):
    path: str
    text: str | None = None
    number: int | None = None
    ratio: float | None = None
    flag: bool | None = None
    kind: Literal["a", "b"] | None = None
    uuid: UUID | None = None
    tags: tuple[str, ...] = ()


@probe.message
class Behave(Request[str]):
    how: str


@probe.message
class Put(Request[int]):
    inner: Inner
    ratio: Annotated[float, Meta(ge=0, le=1)] = 0.5
    note: str = ""


@probe.message
class Big(Request[str]):
    size: Annotated[int, Meta(ge=0)]


@probe.message
class Guarded(Request[str]):
    pass


@probe.message
class NewThing(Request[str]):
    pass


@probe.message
class PutThing(Request[str]):
    name: str


@probe.message
class Teapot(ServiceError):
    """I am a teapot."""

    code, status = "teapot", 418
    volume: int


class Probe(Service):
    """A service that returns, raises, or hangs as requested."""

    contract = probe

    def __init__(self) -> None:
        self.hang_log: list[str] = []

    @handles(http="GET /look/{path}", allow=ANYONE)
    async def look(self, message: Look, ctx: Context) -> Seen:
        return Seen(
            message.path, message.text, message.number, message.ratio, message.flag, message.kind, message.uuid, message.tags,
            ctx.trace, ctx.remaining,
        )  # fmt: skip

    @handles(http="POST /behave/{how}", allow=ANYONE, raises=(Teapot,))
    async def behave(self, message: Behave, ctx: Context) -> str:
        match message.how:
            case "teapot":
                raise Teapot(3)
            case "crash":
                raise RuntimeError("the secret plan")
            case "overloaded":
                raise Overloaded("probe")
            case "lost":
                raise InstanceLost("probe")
            case "hang":
                self.hang_log.append("started")
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.hang_log.append("cancelled")
                    raise
        return message.how

    @handles(http="PUT /put", allow=ANYONE)
    async def put(self, message: Put, ctx: Context) -> int:
        return message.inner.number

    @handles(http="GET /big", allow=ANYONE)
    async def big(self, message: Big, ctx: Context) -> str:
        return "x" * message.size

    @handles(http="GET /things/new", allow=ANYONE)
    async def new_thing(self, message: NewThing, ctx: Context) -> str:
        return "get"

    @handles(http="PUT /things/{name}", allow=ANYONE)
    async def put_thing(self, message: PutThing, ctx: Context) -> str:
        return f"put {message.name}"

    @handles(http="GET /guarded", allow=roles("rider"))
    async def guarded(self, message: Guarded, ctx: Context) -> str:
        return ctx.user.subject
