"""`callboard devices`: scooters that are no part of the system. Each is an MQTT client of another make (aiomqtt), with its own
credential, and knows nothing but `docs/wire.md`."""

import asyncio
import secrets
import uuid
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import rich_click as click
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from config.broker import PrivateBroker
from config.cli.common import loaded, patience, with_config
from config.cli.run import told_to_stop
from config.settings import Settings
from runtime import CallboardError, Clock, Random, Struct
from services.devices.scooter import Scooter
from services.devices.service import somewhere
from transports.mqtt.settings import MqttSettings

_STEP = 1.0
_PAUSE = 2.0
"""Seconds before a lost connection is made again."""


class Device(Struct):
    """A scooter that was enrolled: its id, which is its user name, and its password. Never log it."""

    id: str
    password: str
    lat: float
    lon: float
    battery: float

    def __repr__(self) -> str:
        return f"<Device {self.id}>"


@click.command("devices")
@click.option("--count", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many scooters.")
@with_config
def devices_command(count: int, config_file: Path | None) -> None:
    """Play scooters against a running `callboard up`, each with a connection and a credential of its own. Stop with Ctrl-C.

    New ones are enrolled with the fleet first; those that were played before are played again.
    """
    settings = loaded(config_file).settings
    asyncio.run(_play(settings, count))  # aiomqtt watches its sockets through asyncio's own loop


async def _play(settings: Settings, count: int) -> None:
    told = told_to_stop()
    broker = PrivateBroker(Path(settings.database.folder))
    credentials = broker.credentials()
    if credentials is None or "devices" not in credentials.services:
        raise CallboardError(f"there is no private broker in {broker.folder}: start `callboard up` in this folder first")
    url = MqttSettings(url=credentials.url, namespace=credentials.namespace)
    path = Path(settings.database.folder) / "devices.json"
    known = msgspec.json.decode(path.read_bytes(), type=list[Device]) if path.exists() else []
    known = [device for device in known if device.id in credentials.devices][:count]
    with patience(f"enrolling {count - len(known)} scooters"):
        if len(known) < count:
            known += await _enrol(settings, url, credentials.services["devices"], count - len(known))
            broker.admit({device.id: device.password for device in known})
            path.touch(mode=0o600)
            path.write_bytes(msgspec.json.encode(known))
    street = _Street(url, count)
    riding = [asyncio.create_task(street.ride(device)) for device in known]
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait((waiting, *riding), return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, *riding):
        task.cancel()
    for result in await asyncio.gather(*riding, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _enrol(settings: Settings, url: MqttSettings, password: str, count: int) -> list[Device]:
    """Asks the fleet for scooters, as any client may that is allowed to: a request with a Response Topic."""
    client_id = f"enrolment-{uuid.uuid4().hex}"
    answers = f"{url.namespace}/1/inbox/devices/{client_id}"
    random = Random(Clock())
    found: list[Device] = []
    try:
        async with _client(url, "devices", password, client_id) as client:
            await client.subscribe(f"{answers}/+", qos=0)
            for _ in range(count):
                wanted = somewhere(settings.devices, random)
                asked = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
                asked.ResponseTopic, asked.CorrelationData = answers, uuid.uuid4().bytes
                asked.UserProperty = [("budget", "10000"), ("key", uuid.uuid4().hex)]
                topic = f"{url.namespace}/1/request/fleet/AddScooter/devices"
                await client.publish(topic, msgspec.json.encode(wanted), qos=1, properties=asked)
                async with asyncio.timeout(15):
                    answer = await anext(aiter(client.messages))
                reply: dict[str, Any] = msgspec.json.decode(_bytes(answer.payload))
                if "id" not in reply:
                    raise CallboardError(f"the fleet enrols no scooter: {reply.get('detail') or reply.get('title')}")
                found.append(Device(reply["id"], secrets.token_urlsafe(24), wanted.lat, wanted.lon, wanted.battery))
    except aiomqtt.MqttError as error:
        raise CallboardError(f"{url.url}: {error}: does `callboard up` run?") from None
    except TimeoutError:
        raise CallboardError("the fleet does not answer: is it among the services that `callboard up` runs?") from None
    return found


class _Street:
    """Where the scooters are played."""

    def __init__(self, url: MqttSettings, total: int) -> None:
        self._url = url
        self._total = total
        self._random = Random(Clock())
        self._connected = 0

    async def ride(self, device: Device) -> None:
        """Plays one scooter for as long as it is let in. A connection that is lost is made again."""
        scooter = Scooter(device.id, device.lat, device.lon, device.battery, locked=True)
        root = f"{self._url.namespace}/1/signal/fleet"
        while True:
            try:
                async with _client(self._url, device.id, device.password, f"scooter-{device.id}") as client:
                    for order in ("Lock", "Unlock"):
                        await client.subscribe(f"{root}/{order}/{device.id}", qos=1)
                    self._count(+1)
                    try:
                        async with asyncio.TaskGroup() as tasks:
                            tasks.create_task(self._obey(client, scooter))
                            tasks.create_task(self._report(client, scooter, f"{root}/Telemetry/{device.id}"))
                    finally:
                        self._count(-1)
            except* aiomqtt.MqttError as group:
                click.echo(f"scooter {device.id}: {group.exceptions[0]}; trying again", err=True)
            await asyncio.sleep(self._random.jitter(_PAUSE))

    def _count(self, change: int) -> None:
        self._connected += change
        if self._connected == self._total or change < 0:
            click.echo(f"{self._connected} of {self._total} scooters are connected")

    async def _obey(self, client: aiomqtt.Client, scooter: Scooter) -> None:
        async for message in client.messages:
            locked = str(message.topic).split("/")[-2] == "Lock"
            if locked != scooter.locked:
                click.echo(f"scooter {scooter.id} is {'locked' if locked else 'unlocked'}")
            scooter.obey(locked=locked)

    async def _report(self, client: aiomqtt.Client, scooter: Scooter, topic: str) -> None:
        while True:
            report = scooter.step(_STEP, self._random)
            if report is not None:
                await client.publish(topic, msgspec.json.encode(report), qos=0)
            await asyncio.sleep(_STEP)


def _client(url: MqttSettings, username: str, password: str, client_id: str) -> aiomqtt.Client:
    host, _, port = url.url.removeprefix("mqtt://").rpartition(":")
    return aiomqtt.Client(
        host, int(port), username=username, password=password, identifier=client_id, protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=True, timeout=5,
    )  # fmt: skip


def _bytes(payload: object) -> bytes:
    return payload if isinstance(payload, bytes) else str(payload).encode()
