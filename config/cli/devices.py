"""`callboard devices`: simulate scooters outside the system.

Each scooter uses a third-party MQTT client (aiomqtt) and its own credential, and relies only on `docs/wire.md`.
"""

import asyncio
import secrets
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import msgspec
import rich_click as click
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from config import compose
from config.broker import PrivateBroker
from config.cli.common import loaded, with_config, with_json
from config.cli.output import json_text, progress
from config.settings import Settings
from config.signals import stop_signal
from runtime import CallboardError, Clock, Random, Struct
from runtime.telemetry import printable
from services.devices.scooter import Scooter
from services.devices.service import DeviceSettings, somewhere
from transports.mqtt.settings import MqttSettings

_STEP = 1.0
"""Seconds between two steps of the simulation."""
_RECONNECT_DELAY = 2.0
"""Seconds before a scooter reconnects after it lost its connection."""


class Device(Struct):
    """An enrolled scooter. Its id is its MQTT user name. The password is secret: never log it."""

    id: str
    password: str
    lat: float
    lon: float
    battery: float

    def __repr__(self) -> str:
        return f"<Device {self.id}>"


@click.command("devices")
@click.option("--count", type=click.IntRange(1, 1000), default=50, show_default=True, help="The number of scooters.")
@with_json
@with_config
def devices_command(count: int, as_json: bool, config_file: Path | None) -> None:
    """Simulate scooters that connect to the broker of a running `callboard up`. Stop with Ctrl-C.

    Each scooter has its own connection and credential. Scooters from earlier runs are reused, and missing ones are first
    enrolled with the fleet service.

    \b
    Examples:
      callboard devices --count 5
    """
    settings = loaded(config_file).settings
    asyncio.run(_simulate(settings, count, as_json))  # aiomqtt needs asyncio's own event loop to watch its sockets


async def _simulate(settings: Settings, count: int, as_json: bool) -> None:
    stop = stop_signal()
    broker = PrivateBroker(Path(settings.database.folder))
    credentials = broker.credentials()
    if credentials is None or "devices" not in credentials.services:
        raise CallboardError(f"there is no private broker in {broker.folder}: start `callboard up` in this folder first")
    url = MqttSettings(url=credentials.url, namespace=credentials.namespace)
    path = Path(settings.database.folder) / "devices.json"
    known = msgspec.json.decode(path.read_bytes(), type=list[Device]) if path.exists() else []
    known = [device for device in known if device.id in credentials.devices][:count]
    with progress(f"enrolling {count - len(known)} scooters"):
        if len(known) < count:
            known += await _enrol(settings, url, credentials.services["devices"], count - len(known))
            broker.admit({device.id: device.password for device in known})
            path.touch(mode=0o600)
            path.write_bytes(msgspec.json.encode(known))
    simulation = _Simulation(msgspec.structs.replace(url, url=credentials.devices_url), count, as_json)
    scooters = [asyncio.create_task(simulation.run(device)) for device in known]
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait((waiting, *scooters), return_when=asyncio.FIRST_COMPLETED)
    for task in (waiting, *scooters):
        task.cancel()
    for result in await asyncio.gather(*scooters, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _enrol(settings: Settings, url: MqttSettings, password: str, count: int) -> list[Device]:
    """Enrol scooters with the fleet service through plain MQTT 5 requests with a Response Topic.

    Raises:
        CallboardError: if the broker or the fleet service does not answer, or the fleet refuses a scooter.
    """
    client_id = f"enrolment-{uuid.uuid4().hex}"
    inbox = f"{url.namespace}/1/inbox/devices/{client_id}"
    random = Random(Clock())
    found: list[Device] = []
    where: DeviceSettings = compose.own_settings(settings, "devices")
    try:
        async with _client(url, "devices", password, client_id) as client:
            await client.subscribe(f"{inbox}/+", qos=0)
            for _ in range(count):
                wanted = somewhere(where, random)
                properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho does not annotate it
                properties.ResponseTopic, properties.CorrelationData = inbox, uuid.uuid4().bytes
                properties.UserProperty = [("budget", "10000"), ("key", uuid.uuid4().hex)]
                topic = f"{url.namespace}/1/request/fleet/AddScooter/devices"
                await client.publish(topic, msgspec.json.encode(wanted), qos=1, properties=properties)
                async with asyncio.timeout(15):
                    answer = await anext(aiter(client.messages))
                reply: dict[str, Any] = msgspec.json.decode(_bytes(answer.payload))
                if "id" not in reply:
                    raise CallboardError(
                        f"the fleet service refused to enrol a scooter: {reply.get('detail') or reply.get('title')}"
                    )
                found.append(Device(reply["id"], secrets.token_urlsafe(24), wanted.lat, wanted.lon, wanted.battery))
    except aiomqtt.MqttError as error:
        raise CallboardError(f"{url.url}: {error}: is `callboard up` running?") from None
    except TimeoutError:
        raise CallboardError("the fleet service does not answer: does `callboard up` run it?") from None
    return found


class _Simulation:
    """A simulation of scooters that counts how many are connected.

    Args:
        url: the settings of the MQTT connection.
        total: the number of scooters.
        as_json: whether to print JSON.
    """

    def __init__(self, url: MqttSettings, total: int, as_json: bool) -> None:
        self._url = url
        self._total = total
        self._as_json = as_json
        self._random = Random(Clock())
        self._connected = 0

    async def run(self, device: Device) -> None:
        """Simulate one scooter. Reconnects whenever the connection is lost."""
        scooter = Scooter(device.id, device.lat, device.lon, device.battery, locked=True)
        root = f"{self._url.namespace}/1/signal/fleet"
        while True:
            try:
                async with _client(self._url, device.id, device.password, device.id) as client:
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
                click.echo(printable(f"scooter {device.id}: {group.exceptions[0]}; trying again"), err=True)
            await asyncio.sleep(self._random.jitter(_RECONNECT_DELAY))

    def _count(self, change: int) -> None:
        self._connected += change
        if self._connected == self._total or change < 0:
            self._say(
                f"{self._connected} of {self._total} scooters are connected", connected=self._connected, scooters=self._total
            )

    def _say(self, text: str, **data: object) -> None:
        click.echo(json_text(data) if self._as_json else text)

    async def _obey(self, client: aiomqtt.Client, scooter: Scooter) -> None:
        async for message in client.messages:
            locked = str(message.topic).split("/")[-2] == "Lock"
            if locked != scooter.locked:
                self._say(f"scooter {scooter.id} is {'locked' if locked else 'unlocked'}", scooter=scooter.id, locked=locked)
            scooter.obey(locked=locked)

    async def _report(self, client: aiomqtt.Client, scooter: Scooter, topic: str) -> None:
        while True:
            report = scooter.step(_STEP, self._random)
            if report is not None:
                await client.publish(topic, msgspec.json.encode(report), qos=0)
            await asyncio.sleep(_STEP)


def _client(url: MqttSettings, username: str, password: str, client_id: str) -> aiomqtt.Client:
    parts = urlsplit(url.url)
    return aiomqtt.Client(
        parts.hostname or "", parts.port or 1883, username=username, password=password, identifier=client_id, protocol=aiomqtt.ProtocolVersion.V5,
        clean_start=True, timeout=5,
    )  # fmt: skip


def _bytes(payload: object) -> bytes:
    return payload if isinstance(payload, bytes) else str(payload).encode()
