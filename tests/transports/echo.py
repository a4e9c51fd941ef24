"""A small service that the transports' tests talk to, on nodes that notice quickly."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runtime import ANYONE, Context, Contract, Node, Request, Service, ServiceError, Signal, handles, subscribes
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

echo = Contract("echo")


@echo.message
class Say(Request[str]):
    """Says it back."""

    text: str


@echo.message
class Repeat(Request[str]):
    """The same, and asking again does no harm."""

    text: str


@echo.message
class Much(Request[str]):
    """A long answer."""

    size: int


@echo.message
class Refuse(Request[None]):
    """Does not."""

    reason: str


@echo.message
class Refused(ServiceError):
    """It was refused."""

    code, status = "refused", 409
    reason: str


@echo.message(key="room")
class Heard(Signal):
    """What was said, and where."""

    room: str
    text: str


class Echo(Service):
    """Answers, while its gate is open."""

    contract = echo
    concurrency = 1000

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.heard: list[Heard] = []

    @handles(allow=ANYONE)
    async def say(self, message: Say, ctx: Context) -> str:
        await self.gate.wait()
        await ctx.publish(Heard("hall", message.text))
        return message.text

    @handles(allow=ANYONE, idempotent=True)
    async def repeat(self, message: Repeat, ctx: Context) -> str:
        await self.gate.wait()
        return message.text

    @handles(allow=ANYONE)
    async def much(self, message: Much, ctx: Context) -> str:
        return "x" * message.size

    @handles(allow=ANYONE, raises=(Refused,))
    async def refuse(self, message: Refuse, ctx: Context) -> None:
        raise Refused(message.reason)

    @subscribes
    async def on_heard(self, signal: Heard, ctx: Context) -> None:
        self.heard.append(signal)


def transport(url: str, **more: object) -> MqttTransport:
    """A transport that notices within a second or two."""
    settings: dict[str, object] = {"keepalive": 1, "heartbeat": 0.3, "connect_timeout": 1.0, **more}
    return MqttTransport(MqttSettings(url=url, **settings))  # type: ignore[arg-type]


@asynccontextmanager
async def pair(url: str, asker: str = "", **more: object) -> AsyncGenerator[tuple[Echo, Context], None]:
    """A service on one node, and a context on another that asks it, perhaps over a link of its own."""
    async with Node([Echo], transport(url, **more)) as one, Node([], transport(asker or url, **more)) as other:
        await other.registry.wait_for("echo")
        service = one.service(Echo)
        assert service is not None
        yield service, other.client("test", (echo,))


async def answers(ctx: Context) -> bool:
    """Whether the service does, within half a second."""
    try:
        return await ctx.request(Say("?"), timeout=0.5) == "?"
    except ServiceError:
        return False
