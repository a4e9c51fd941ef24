"""A small service for the tests of the MQTT transport, on nodes with short timeouts."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from runtime import ANYONE, Context, Contract, Node, Request, Service, ServiceError, Signal, handles, subscribes
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

echo = Contract("echo")


@echo.message
class Say(Request[str]):
    """Return the text, and publish it as a signal."""

    text: str


@echo.message
class Repeat(Request[str]):
    """Return the text; an idempotent request."""

    text: str


@echo.message
class Much(Request[str]):
    """Return a long text."""

    size: int


@echo.message
class Refuse(Request[None]):
    """Fail with `Refused`."""

    reason: str


@echo.message
class Refused(ServiceError):
    """It was refused."""

    code, status = "refused", 409
    reason: str


@echo.message(key="room")
class Heard(Signal):
    """The text that was said, and the room."""

    room: str
    text: str


class Echo(Service):
    """A service that answers `Say` and `Repeat` only while its gate is open."""

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
    """Return an MQTT transport that notices a broken link within one or two seconds."""
    settings: dict[str, object] = {"keepalive": 1, "heartbeat": 0.3, "connect_timeout": 1.0, **more}
    return MqttTransport(MqttSettings(url=url, **settings))  # type: ignore[arg-type]


@asynccontextmanager
async def echo_over_mqtt(url: str, client_url: str = "", **more: object) -> AsyncGenerator[tuple[Echo, Context], None]:
    """Run `Echo` on one node, and yield it with a client context on another node, which may use another URL."""
    async with Node([Echo], transport(url, **more)) as server, Node([], transport(client_url or url, **more)) as client:
        await client.registry.wait_for("echo")
        service = server.service(Echo)
        assert service is not None
        yield service, client.client("test", (echo,))


async def answers(ctx: Context) -> bool:
    """Return whether the service answers within half a second."""
    try:
        return await ctx.request(Say("?"), timeout=0.5) == "?"
    except ServiceError:
        return False
