"""Access control on a real mosquitto: each service's credential is valid for that service's own topics only."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import mqtt5
import pytest

from config import compose
from config.broker import Credentials, PrivateBroker
from runtime.testing import eventually
from tests.project import RENTAL
from transports.mqtt.connection import Connection

SERVICES = ("auth", "wallet", "fleet", "rides", "notices", "devices", "gateway")


class Client:
    """A bare MQTT client with one credential."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.packets: list[mqtt5.Packet] = []
        self.received: list[str] = []
        self._last = 0

    async def connect(self, url: str, username: str, password: str) -> None:
        loop = asyncio.get_running_loop()
        port = int(url.rpartition(":")[2])
        _, self._connection = await loop.create_connection(
            lambda: Connection(lambda _, packet: self._take(packet), lambda _, reason: None, 1 << 20), "127.0.0.1", port
        )
        self._connection.send(mqtt5.ConnectPacket(self.name, username=username, password=password.encode(), clean_start=True))
        await eventually(lambda: self.packets, "the broker has answered")
        answer = self.packets.pop()
        assert isinstance(answer, mqtt5.ConnAckPacket)
        assert int(answer.reason_code) == 0, "the broker accepts the connection"

    def _take(self, packet: mqtt5.Packet) -> None:
        if isinstance(packet, mqtt5.PublishPacket):
            self.received.append(packet.topic)
        else:
            self.packets.append(packet)

    async def can_publish(self, topic: str) -> bool:
        self._last += 1
        self._connection.send(mqtt5.PublishPacket(topic, b"{}", qos=mqtt5.QoS.AT_LEAST_ONCE, packet_id=self._last))
        await eventually(lambda: self.packets, "the broker has answered")
        answer = self.packets.pop()
        assert isinstance(answer, mqtt5.PubAckPacket)
        return int(answer.reason_code) < 0x80

    async def subscribe(self, *patterns: str) -> None:
        for pattern in patterns:
            self._last += 1
            self._connection.send(mqtt5.SubscribePacket(self._last, [mqtt5.TopicFilter(pattern, max_qos=mqtt5.QoS.AT_MOST_ONCE)]))
            await eventually(lambda: self.packets, "the broker has answered")
            self.packets.pop()

    async def round_trip(self) -> None:
        self._connection.send(mqtt5.PingReqPacket())
        await eventually(lambda: self.packets, "the broker has answered")
        self.packets.pop()

    def close(self) -> None:
        self._connection.end("done")


@asynccontextmanager
async def private_broker(folder: Path) -> AsyncGenerator[tuple[PrivateBroker, Credentials], None]:
    broker = PrivateBroker(folder)
    credentials = broker.prepare(compose.definitions(RENTAL), "callboard")
    process = await asyncio.create_subprocess_exec(*broker.command(), stdin=asyncio.subprocess.PIPE)
    try:
        await eventually(lambda: _is_listening(int(credentials.url.rpartition(":")[2])), "the broker is listening")
        yield broker, credentials
    finally:
        process.terminate()
        await process.wait()


async def _is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def topics(service: str, node: str) -> list[str]:
    """Return the topics on which only this service may publish, whatever the recipient."""
    return [
        f"callboard/1/presence/{service}/{node}",
        f"callboard/1/stream/{service}",
        f"callboard/1/signal/{service}/Anything/-",
        f"callboard/1/signal/{service}/Anything/key",
        *(f"callboard/1/inbox/{other}/node/{service}" for other in (*SERVICES, "intruder")),
        *(f"callboard/1/request/{other}/Anything/{service}" for other in (*SERVICES, "intruder")),
    ]


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_can_publish_only_in_its_own_name(tmp_path: Path, service: str) -> None:
    async with private_broker(tmp_path) as (_, credentials):
        client = Client(f"{service}-node")
        await client.connect(credentials.url, service, credentials.services[service])
        for own in (
            f"presence/{service}/{service}-node",
            f"stream/{service}",
            f"signal/{service}/Anything/-",
            f"gone/{service}-node",
        ):
            assert await client.can_publish(f"callboard/1/{own}"), own
        forged = [topic for other in SERVICES if other != service for topic in topics(other, f"{other}-node")]
        forged += [
            "callboard/1/gone/other-node",
            "other/1/stream/" + service,
            "anything",
            "$SYS/broker/version",
        ]
        allowed = [topic for topic in forged if await client.can_publish(topic)]
        assert allowed == [], "nothing is accepted in another service's name"
        client.close()


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_receives_only_its_own_requests_and_inbox(tmp_path: Path, service: str) -> None:
    async with private_broker(tmp_path) as (_, credentials):
        client = Client(f"{service}-node")
        await client.connect(credentials.url, service, credentials.services[service])
        await client.subscribe(
            "#", "callboard/1/inbox/#", "callboard/1/request/#", *(f"callboard/1/inbox/{other}/+/+" for other in SERVICES)
        )
        senders: list[Client] = []
        for sender in SERVICES:
            if sender != service:
                senders.append(Client(f"{sender}-sender"))
                await senders[-1].connect(credentials.url, sender, credentials.services[sender])
                for topic in topics(sender, f"{sender}-sender"):
                    await senders[-1].can_publish(topic)
        await client.round_trip()
        wrong = [
            topic for topic in client.received if topic.split("/")[2] in ("inbox", "request") and topic.split("/")[3] != service
        ]
        assert wrong == [], "messages for other services are not received"
        for other in senders:
            other.close()
        client.close()


async def test_a_device_can_use_only_its_own_signals(tmp_path: Path) -> None:
    async with private_broker(tmp_path) as (broker, credentials):
        broker.admit({"scooter-1": "first", "scooter-2": "second"})
        client = Client("scooter-1")

        async def accepted() -> bool:
            try:
                await client.connect(credentials.devices_url, "scooter-1", "first")
            except AssertionError:
                return False
            return True

        await eventually(accepted, "the broker has loaded the device's credential")
        assert await client.can_publish("callboard/1/signal/fleet/Telemetry/scooter-1")
        forged = [topic for service in SERVICES for topic in topics(service, "scooter-1")]
        forged += ["callboard/1/signal/fleet/Telemetry/scooter-2", "callboard/1/signal/fleet/Telemetry/-"]
        forged += [
            f"callboard/1/signal/fleet/{order}/{device}" for order in ("Lock", "Unlock") for device in ("scooter-1", "scooter-2")
        ]
        forged += [topic for service in ("scooter-1", "scooter-2") for topic in topics(service, "scooter-1")]
        assert [topic for topic in forged if await client.can_publish(topic)] == []
        await client.subscribe("#", "callboard/1/signal/fleet/+/+", "callboard/1/presence/+/+")
        fleet = Client("fleet-sender")
        await fleet.connect(credentials.url, "fleet", credentials.services["fleet"])
        for topic in (
            "signal/fleet/Unlock/scooter-2",
            "stream/fleet",
            "presence/fleet/fleet-sender",
            "signal/fleet/Unlock/scooter-1",
        ):
            assert await fleet.can_publish(f"callboard/1/{topic}")
        await eventually(lambda: client.received, "the device has received a signal")
        assert set(client.received) == {"callboard/1/signal/fleet/Unlock/scooter-1"}
        fleet.close()
        client.close()


async def test_broker_files_are_readable_only_by_their_owner_and_hold_no_password(tmp_path: Path) -> None:
    broker = PrivateBroker(tmp_path)
    credentials = broker.prepare(compose.definitions(RENTAL), "callboard")
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "broker").iterdir()} == {0}
    assert not any(password in repr(credentials) for password in credentials.services.values())
    hashed = (tmp_path / "broker" / "passwords").read_text()
    assert not any(password in hashed for password in credentials.services.values())
    again = broker.prepare(compose.definitions(RENTAL), "callboard")
    assert again.services == credentials.services, "services keep their passwords, so connected ones stay connected"


async def test_no_device_takes_the_place_of_another_client(tmp_path: Path) -> None:
    """A broker disconnects a client when another one connects with its id. The client id of a device is its user name."""
    async with private_broker(tmp_path) as (broker, credentials):
        broker.admit({"scooter-1": "first", "scooter-2": "second"})
        node, victim = Client("fleet-node"), Client("anything")
        await node.connect(credentials.url, "fleet", credentials.services["fleet"])

        async def connected() -> bool:
            try:
                await victim.connect(credentials.devices_url, "scooter-1", "first")
            except AssertionError:
                return False
            return True

        await eventually(connected, "the broker has read the passwords of the devices")
        for stolen in ("fleet-node", "scooter-1", "anything"):
            attacker = Client(stolen)
            await attacker.connect(credentials.devices_url, "scooter-2", "second")
            await attacker.round_trip()
            await node.round_trip()
            await victim.round_trip()
            attacker.close()
        for url, user, password in (
            (credentials.url, "scooter-2", "second"),
            (credentials.devices_url, "fleet", credentials.services["fleet"]),
        ):
            with pytest.raises(AssertionError, match="the broker accepts the connection"):
                await Client("fleet-node").connect(url, user, password)
        await node.round_trip()
        node.close()
        victim.close()
