"""`callboard up`: run the same services as `dev`, each in a separate process, connected by a private broker."""

import asyncio
import os
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import rich_click as click

from config import compose
from config.broker import Credentials, PrivateBroker
from config.cli import candidates
from config.cli.common import http_url, loaded, run_loop, with_config
from config.cli.output import progress
from config.cli.quickstart import empty, quickstart, warn_if_public
from config.console import with_console
from config.folder_locks import Lock, databases_locked, url_published
from config.packages import own_command, own_path
from config.processes import Process, program_environment, run_groups, service_environment
from config.settings import Settings
from config.signals import stop_signal
from config.users import has_our_auth, with_users
from runtime import CallboardError
from runtime.sockets import free_port
from services.auth.service import Auth

_AUTH = "CALLBOARD_SERVICES__AUTH__SETTINGS"
"""How the variables with the settings of the auth service begin."""
_TWIN_DELAY = 1.0
"""Seconds for which one of several gateways keeps serving when it stops, so that clients move their connections to another."""


@click.command("up")
@click.argument("names", metavar="[SERVICE…]", nargs=-1, shell_complete=candidates.services)
@click.option(
    "--replicas", default="", metavar="NAME=N,…", help="The number of processes per service, such as gateway=2 (default: 1 each)."
)
@click.option("--fresh", is_flag=True, help="Start with empty databases.")
@with_config
def up_command(names: tuple[str, ...], replicas: str, fresh: bool, config_file: Path | None) -> None:
    """Run the whole system, or the named services, as separate processes with a private mosquitto broker. Stop with Ctrl-C.

    Each service has its own credential, and the broker's access list limits it to its own topics. A process that ends
    is restarted, after a pause that grows, and the others run on.

    \b
    Examples:
      callboard up
      callboard up --replicas gateway=2 --fresh
    """
    settings = loaded(config_file).settings
    warn_if_public(settings)
    chosen = list(compose.chosen(settings, names))  # also checks their own settings
    counts = _counts(replicas, settings, chosen)
    if settings.gateway.port == 0 or "gateway" in chosen:
        port = free_port(settings.gateway.host, settings.gateway.port, "CALLBOARD_GATEWAY__PORT")
        settings = msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, port=port))
    folder = Path(settings.database.folder)
    broker = PrivateBroker(folder)
    command = broker.command()
    with Lock(folder / "up.lock", f"process {os.getpid()} (`callboard up`)"):
        with databases_locked(folder, compose.stateful(settings, chosen), "callboard up"):
            if fresh:
                empty(folder)
        # from here on, the processes of the services lock their own databases
        _up(with_console(with_users(settings)), names, counts, config_file, broker, command)


def _up(
    settings: Settings,
    names: tuple[str, ...],
    counts: dict[str, int],
    config_file: Path | None,
    broker: PrivateBroker,
    command: list[str],
) -> None:
    folder, chosen = Path(settings.database.folder), list(counts)
    credentials = broker.prepare(compose.definitions(settings, names), settings.transport.mqtt.namespace)
    if has_our_auth(settings):
        users = folder / "broker" / "users.json"
        users.touch(mode=0o600)
        users.write_bytes(msgspec.json.encode(compose.own_settings(settings, Auth.contract.name).users))
    width = max(map(len, [*chosen, "broker"])) + 2
    groups = [
        [Process("broker", command, program_environment(), width, 0)],
        *_services(settings, counts, credentials, folder, width, config_file),
    ]
    run_loop(_run(settings, groups, chosen, counts))


def _counts(replicas: str, settings: Settings, chosen: list[str]) -> dict[str, int]:
    counts = {name: compose.replicas(settings, name) for name in chosen}
    stateful = compose.stateful(settings, chosen)
    for part in filter(None, (part.strip() for part in replicas.split(","))):
        name, equals, number = part.partition("=")
        if not equals or not number.isdecimal() or int(number) < 1:
            raise CallboardError(f"--replicas {part}: expected NAME=N, as gateway=2")
        if name not in counts:
            raise CallboardError(f"--replicas {part}: no service is called {name!r}: choose from {', '.join(chosen)}")
        counts[name] = int(number)
    for name in stateful:
        if counts[name] > 1:
            stateless = [other for other in chosen if other not in stateful]
            raise CallboardError(
                f"{name}={counts[name]}: {name} keeps its state in an SQLite file, which its replicas cannot share: give it a database on PostgreSQL (CALLBOARD_DATABASE__URL); {', '.join(stateless)} can have several"
            )
    return counts


def _services(
    settings: Settings, counts: Mapping[str, int], credentials: Credentials, folder: Path, width: int, config_file: Path | None
) -> list[list[Process]]:
    """Return the processes of all services except the gateway, then those of the gateway, which stops first."""
    groups: list[list[Process]] = [[], []]
    number = 0
    style = "text" if settings.log.format == "text" or (settings.log.format == "auto" and sys.stdout.isatty()) else "json"
    width = 0 if style == "json" else width  # a record names its service and node
    owners = compose.with_route_owners(settings, list(counts)).gateway.owners
    for name, count in counts.items():
        environment = (
            service_environment(name, compose.catalogue(settings))
            | own_path()
            | {
                "CALLBOARD_LOG__FORMAT": style,
                "CALLBOARD_TRANSPORT__KIND": "mqtt",
                "CALLBOARD_TRANSPORT__MQTT__URL": credentials.url,
                "CALLBOARD_TRANSPORT__MQTT__NAMESPACE": credentials.namespace,
                "CALLBOARD_TRANSPORT__MQTT__USERNAME": name,
                "CALLBOARD_TRANSPORT__MQTT__PASSWORD_FILE": str(folder / "broker" / f"{name}.password"),
                "CALLBOARD_GATEWAY__DRAIN_DELAY": str(max(settings.gateway.drain_delay, _TWIN_DELAY) if count > 1 else 0),
                "CALLBOARD_GATEWAY__EXPECTS": ",".join(compose.expected(settings, list(counts))),
                "CALLBOARD_GATEWAY__PORT": str(settings.gateway.port),
                "CALLBOARD_GATEWAY__OWNERS": ",".join(owners),
                "CALLBOARD_GATEWAY__SHARE_PORT": "true" if count > 1 else "false",
                "CALLBOARD_IDENTITY__ISSUERS": msgspec.json.encode(settings.identity.issuers).decode(),
            }
        )
        environment.pop("CALLBOARD_TRANSPORT__MQTT__PASSWORD", None)
        if (url := compose.database_url(settings, name)) is not None:
            environment["CALLBOARD_DATABASE__URL"] = url
        if name == Auth.contract.name and has_our_auth(settings):
            for variable in [one for one in environment if one.startswith(("CALLBOARD_AUTH__USERS", f"{_AUTH}__USERS"))]:
                del environment[variable]
            environment[f"{_AUTH}__USERS_FILE"] = str(folder / "broker" / "users.json")
        config = [] if config_file is None else ["--config", str(config_file)]
        for index in range(count):
            number += 1
            label = name if count == 1 else f"{name}.{index + 1}"
            command = own_command("run", name, "--leash", *config)
            groups[name == "gateway"].append(Process(label, command, environment, width, number))
    return [group for group in groups if group]


async def _run(settings: Settings, groups: list[list[Process]], chosen: list[str], counts: Mapping[str, int]) -> None:
    running = asyncio.create_task(run_groups(groups, stop_signal()))
    if "gateway" in chosen:
        url = http_url(settings.gateway.host, settings.gateway.port)
        with url_published(Path(settings.database.folder), url):
            announcement = asyncio.create_task(_announce(settings, chosen, counts))
            await asyncio.wait((running, announcement), return_when=asyncio.FIRST_COMPLETED)
            announcement.cancel()
            await running
    await running


async def _announce(settings: Settings, chosen: list[str], counts: Mapping[str, int]) -> None:
    """Print how to use the system once the gateway sees every service that has REST routes."""
    url = f"{http_url(settings.gateway.host, settings.gateway.port)}/readyz"
    with progress("starting the services"):
        while not await asyncio.to_thread(_is_ready, url):
            await asyncio.sleep(0.1)
    how = f"in {sum(counts.values())} processes and a broker"
    quickstart(settings, settings.gateway.port, chosen, how, console=settings.gateway.console != "off")


def _is_ready(url: str) -> bool:
    """Return whether the gateway knows the routes of every service."""
    try:
        with urlopen(url, timeout=2) as answer:  # noqa: S310  # the URL of this system's gateway
            return bool(answer.status == HTTPStatus.OK)
    except (URLError, OSError, ValueError):
        return False
