"""`callboard publish`: send a signal in the system that `callboard dev` or `callboard up` runs in this folder.

The gateway of `dev` publishes it. In the system of `up`, a third-party MQTT client (aiomqtt) does, with the credential of the signal's service.
"""

import asyncio
import uuid
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomqtt
import msgspec
import rich_click as click
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from config import compose
from config.broker import Credentials, PrivateBroker
from config.cli import candidates
from config.cli.client import Client, describe_problem
from config.cli.common import loaded, with_config, with_json
from config.cli.operations import given_values, signal_fields
from config.cli.output import json_text, progress
from config.folder_locks import holder, running_url
from config.settings import Settings
from runtime import CallboardError, Invalid
from runtime.contract.messages import MessageSpec
from runtime.network import Topic
from transports.mqtt.topics import Topics

_TIMEOUT = 15.0


@click.command("publish")
@click.argument("signal", shell_complete=candidates.signals)
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE…|JSON]", shell_complete=candidates.fields_of_signal)
@with_json
@with_config
def publish_command(signal: str, fields: tuple[str, ...], as_json: bool, config_file: Path | None) -> None:
    """Send SIGNAL as its service does, in the system that `callboard dev` or `up` runs in this folder. Each subscriber receives it at most once.

    Only signals can be sent. Only a transaction of its service publishes an event: call a request that does so.

    \b
    Examples:
      callboard publish fleet.Lock scooter_id=s1
      callboard publish fleet.Telemetry '{"scooter_id": "s1", "lat": 52.5, "lon": 13.4, "battery": 0.8, "locked": true}'
    """
    settings = loaded(config_file).settings
    spec = _find(settings, signal)
    known = signal_fields(spec)
    values = given_values(fields, known)
    for name in values:
        if name not in known:
            raise CallboardError(f"{spec.full_name} has no field {name}: it takes {', '.join(known) or 'none'}")
    try:
        message = spec.codec.decode(msgspec.json.encode(values))
    except Invalid as error:
        raise CallboardError(f"{spec.full_name}: {error.explained()}") from None
    body = spec.codec.encode(message)
    folder = Path(settings.database.folder)
    is_up = holder(folder / "up.lock") is not None
    if not is_up and running_url(folder) is None:
        raise CallboardError(
            "no system runs in this folder: start `callboard dev` or `callboard up` here, or change to its folder"
        )
    with progress(f"publishing {spec.full_name}"):
        if is_up:
            credentials = _credentials(folder, spec.contract.name)
            asyncio.run(_publish(credentials, spec, message, body))  # aiomqtt needs asyncio's own event loop to watch its sockets
        else:
            _publish_in_dev(settings, spec, body)
    if as_json:
        click.echo(json_text({"name": spec.full_name, "body": msgspec.json.decode(body)}))
    else:
        click.echo(f"{spec.full_name} was published.")


def _find(settings: Settings, name: str) -> MessageSpec:
    known = {spec.full_name: spec for cls in compose.catalogue(settings).values() for spec in cls.contract.messages.values()}
    signals = [full for full, spec in known.items() if spec.kind == "signal"]
    wanted = name.casefold()
    matching = [full for full in known if wanted in (full.casefold(), full.partition(".")[2].casefold())]
    if len(matching) > 1:
        raise CallboardError(f"several services have a message {name}: choose from {', '.join(matching)}")
    if not matching:
        [near, *_] = [*get_close_matches(name, signals, 1), ""]
        meant = f"did you mean {near}? " if near else ""
        raise CallboardError(f"there is no signal {name}: {meant}choose from {', '.join(signals) or 'none'}")
    spec = known[matching[0]]
    service = spec.contract.name
    if spec.kind == "event":
        raise CallboardError(
            f"{spec.full_name} is an event: only a transaction of {service} publishes it, with the state that it describes: "
            f"`callboard call {service}` lists the requests of {service}"
        )
    if spec.kind == "request":
        raise CallboardError(f"{spec.full_name} is a request: `callboard call {spec.full_name}` makes it")
    return spec


def _publish_in_dev(settings: Settings, spec: MessageSpec, body: bytes) -> None:
    client = Client(settings, "", None)
    client.log_in(as_operator=True)
    status, answer = client.ask("POST", f"/console/signals/{spec.contract.name}/{spec.name}", body)
    if status != 202:
        raise CallboardError(f"{spec.full_name}: {describe_problem(status, answer)}")


def _credentials(folder: Path, service: str) -> Credentials:
    found = PrivateBroker(folder).credentials()
    if found is None:
        raise CallboardError("`callboard up` uses an outside broker, or none: send the signal to that broker with an MQTT client")
    if service not in found.services:
        raise CallboardError(f"the broker of {folder} does not know {service}: does `callboard up` run it?")
    return found


async def _publish(credentials: Credentials, spec: MessageSpec, message: Any, body: bytes) -> None:
    service = spec.contract.name
    key = None if spec.key is None else getattr(message, spec.key)
    topic = Topics(credentials.namespace).multicast(Topic("signal", service, spec.name, key))
    url = urlsplit(credentials.url)
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho does not annotate it
    properties.CorrelationData = uuid.uuid4().hex.encode()
    try:
        async with asyncio.timeout(_TIMEOUT):
            async with aiomqtt.Client(
                url.hostname or "", url.port or 1883, username=service, password=credentials.services[service],
                protocol=aiomqtt.ProtocolVersion.V5, clean_start=True, timeout=_TIMEOUT,
            ) as client:  # fmt: skip
                await client.publish(topic, body, qos=1, properties=properties)
    except aiomqtt.MqttError as error:
        raise CallboardError(f"{credentials.url}: {error}: is `callboard up` running?") from None
    except TimeoutError:
        raise CallboardError(f"{credentials.url} does not answer: is `callboard up` running?") from None
