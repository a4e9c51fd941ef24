"""The MQTT transport when things go wrong, on a real mosquitto: what a caller sees, and that it mends by itself."""

import asyncio
import logging
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import mqtt5
import pytest

from runtime import ANYONE, Context, Contract, Node, NotDelivered, Request, Service, ServiceError, handles
from runtime.testing import eventually
from tests.broker import Broker
from transports.mqtt.connection import Connection
from transports.mqtt.link import BrokerRefused
from transports.mqtt.settings import MqttSettings
from transports.mqtt.transport import MqttTransport

echo = Contract("echo")


@echo.message
class Say(Request[str]):
    text: str


class Echo(Service):
    contract = echo

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    @handles(allow=ANYONE)
    async def say(self, message: Say, ctx: Context) -> str:
        await self.gate.wait()
        return message.text


def transport(url: str, **more: object) -> MqttTransport:
    return MqttTransport(MqttSettings(url=url, keepalive=1, heartbeat=0.3, **more))  # type: ignore[arg-type]


@asynccontextmanager
async def pair(url: str) -> AsyncGenerator[tuple[Echo, Context], None]:
    """A service on one node, and a context on another that asks it."""
    async with Node([Echo], transport(url)) as one, Node([], transport(url)) as other:
        await other.registry.wait_for("echo")
        service = one.service(Echo)
        assert service is not None
        yield service, other.client("test", (echo,))


async def answers(ctx: Context) -> bool:
    try:
        return await ctx.request(Say("?"), timeout=0.5) == "?"
    except ServiceError:
        return False


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncGenerator[Broker, None]:
    async with Broker(tmp_path) as started:
        yield started


async def kill(broker: Broker) -> None:
    await broker.stop(signal.SIGKILL)


async def stop(broker: Broker) -> None:
    await broker.stop()


@pytest.mark.parametrize("end", [stop, kill])
async def test_a_broker_that_comes_back_is_found_again(broker: Broker, end: Callable[[Broker], Awaitable[None]]) -> None:
    async with pair(broker.url) as (service, ctx):
        service.gate.clear()
        waiting = asyncio.create_task(ctx.request(Say("under way")))
        await asyncio.sleep(0.1)
        await end(broker)
        with pytest.raises(ServiceError) as caught:
            await waiting
        assert caught.value.maybe_delivered, "whether it ran is not known, and that is said"
        assert not await answers(ctx)
        service.gate.set()
        await broker.start()
        await eventually(lambda: answers(ctx), "it is as before")


async def test_a_broker_that_is_not_there_at_the_start_is_waited_for(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    await broker.stop()

    async def play() -> bool:
        async with pair(broker.url) as (_, ctx):
            return await answers(ctx)

    playing = asyncio.create_task(play())
    await eventually(lambda: "cannot be reached" in caplog.text, "that is said")
    await broker.start()
    assert await playing


async def test_a_link_that_is_frozen_without_a_word_is_noticed(broker: Broker) -> None:
    async with pair(broker.url) as (_, ctx):
        broker.send(signal.SIGSTOP)
        try:
            await eventually(lambda: not ctx.host.environment.registry.members("echo"), "nobody is there")  # type: ignore[attr-defined]
        finally:
            broker.send(signal.SIGCONT)
        await eventually(lambda: answers(ctx), "it is as before")


def users_file(folder: Path) -> Path:
    """A file of users: `echo`, with the password `right`."""
    path = folder / "users"
    program = shutil.which("mosquitto_passwd") or shutil.which("mosquitto_passwd", path="/usr/bin:/opt/homebrew/bin")
    assert program is not None, "mosquitto_passwd comes with mosquitto"
    subprocess.run([program, "-c", "-b", str(path), "echo", "right"], check=True, capture_output=True)
    return path


async def test_a_wrong_password_is_said_and_not_tried_again(tmp_path: Path) -> None:
    async with Broker(tmp_path, "allow_anonymous false", f"password_file {users_file(tmp_path)}") as broker:
        for settings in ({}, {"username": "echo", "password": "wrong"}):
            with pytest.raises(BrokerRefused, match="the user name or the password is wrong"):
                async with Node([Echo], transport(broker.url, **settings)):
                    pass
        async with Node([Echo], transport(broker.url, username="echo", password="right")):
            pass
        assert "right" not in repr(MqttSettings(password="right"))


async def test_garbage_is_dropped_counted_and_logged_once(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "callboard.mqtt")
    async with pair(broker.url) as (_, ctx):
        node = ctx.host.environment.node  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        packets: list[mqtt5.Packet] = []
        _, stranger = await loop.create_connection(
            lambda: Connection(packets.append, lambda _: None, 1 << 20), "127.0.0.1", broker.port
        )
        stranger.send(mqtt5.ConnectPacket("stranger", clean_start=True))
        await eventually(lambda: packets, "the stranger is connected")
        for topic in (
            f"inbox/test/{node}/echo",
            "presence/echo/nobody",
            "presence/echo/else",
            f"inbox/echo/{node}/x",
            f"gone/{node}x",
        ):
            for body in (b"", b"\xff\xfe", b"{}", b'{"service":"other","node":"x","instance":"y"}', b"[" * 5000):
                for headers in (
                    [],
                    [("kind", "nonsense")],
                    [("kind", "reply")],
                    [("budget", "soon")],
                    [("params", "{")],
                    [("path", "1")],
                ):
                    stranger.send(mqtt5.PublishPacket(f"callboard/1/{topic}", body, user_properties=headers))
        assert await answers(ctx)
        await eventually(lambda: caplog.text.count("cannot be read") >= 1, "it is logged")
        await asyncio.sleep(0)
        assert await answers(ctx)
        assert caplog.text.count("cannot be read") <= 2, "once for each of the two nodes"
        assert "Traceback" not in caplog.text
        stranger.end("done")


async def test_a_manifest_that_outlives_its_node_costs_nobody_an_answer(broker: Broker) -> None:
    """The broker keeps the manifest of a node that was killed, for a while: who joins then must not wait for a ghost."""
    ghost = MqttTransport(MqttSettings(url=broker.url, keepalive=1))
    dead = Node([Echo], ghost)
    await dead.__aenter__()
    ghost.crash()
    await dead.crash()
    async with Node([], transport(broker.url)) as node:
        await node.registry.wait_for("echo")
        ctx = node.client("test", (echo,))
        with pytest.raises(NotDelivered):
            await ctx.request(Say("?"))
        assert not node.registry.members("echo"), "it is not tried again"
        async with Node([Echo], transport(broker.url)):
            await eventually(lambda: answers(ctx), "another is there")
            assert [await ctx.request(Say(str(number))) for number in range(20)] == [str(number) for number in range(20)]
