"""`callboard up`: the same services as `dev`, each in a process of its own, behind a private broker."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import msgspec
import rich_click as click

from config import compose
from config.broker import Credentials, PrivateBroker
from config.cli.common import loaded, patience, run_loop, with_config
from config.cli.quickstart import empty, quickstart, with_users
from config.cli.run import told_to_stop
from config.processes import Process, inherited, play
from config.settings import Settings
from runtime import CallboardError
from runtime.sockets import free_port


@click.command("up")
@click.argument("names", metavar="[SERVICE…]", nargs=-1)
@click.option("--replicas", default="", metavar="NAME=N,…", help="How many processes of a service there are, as gateway=2.")
@click.option("--fresh", is_flag=True, help="Begin with empty databases.")
@with_config
def up_command(names: tuple[str, ...], replicas: str, fresh: bool, config_file: Path | None) -> None:
    """Run everything (or the services named) as separate processes on a private mosquitto. Stop it with Ctrl-C.

    Each service has a credential of its own, which the broker's access list holds to its own topics. A process that ends is
    started anew.
    """
    settings = loaded(config_file).settings
    chosen = list(compose.chosen(settings, names))
    counts = _counts(replicas, settings, chosen)
    if settings.gateway.port == 0 or "gateway" in chosen:
        port = free_port(settings.gateway.host, settings.gateway.port, "CALLBOARD_GATEWAY__PORT")
        settings = msgspec.structs.replace(settings, gateway=msgspec.structs.replace(settings.gateway, port=port))
    folder = Path(settings.database.folder)
    broker = PrivateBroker(folder)
    command = broker.command()
    if fresh:
        empty(folder)
    settings = with_users(settings)
    credentials = broker.prepare(compose.definitions(settings, names), settings.transport.mqtt.namespace)
    users = folder / "broker" / "users.json"
    users.touch(mode=0o600)
    users.write_bytes(msgspec.json.encode(settings.auth.users))
    width = max(map(len, [*chosen, "broker"])) + 2
    groups = [
        [Process("broker", command, inherited(), width, 0)],
        *_services(settings, counts, credentials, folder, width, config_file),
    ]
    run_loop(_play(settings, groups, chosen, counts))


def _counts(replicas: str, settings: Settings, chosen: list[str]) -> dict[str, int]:
    counts = dict.fromkeys(chosen, 1)
    stateful = {d.contract.name for d in compose.definitions(settings, chosen) if d.needs_database}
    for part in filter(None, (part.strip() for part in replicas.split(","))):
        name, equals, number = part.partition("=")
        if not equals or not number.isdecimal() or int(number) < 1:
            raise CallboardError(f"--replicas {part}: expected NAME=N, as gateway=2")
        if name not in counts:
            raise CallboardError(f"--replicas {part}: no service is called {name!r}: choose from {', '.join(chosen)}")
        if int(number) > 1 and name in stateful:
            able = [other for other in chosen if other not in stateful]
            raise CallboardError(
                f"--replicas {part}: {name} keeps its state in an SQLite file, which its replicas cannot share: {', '.join(able)} can have several"
            )
        counts[name] = int(number)
    return counts


def _services(
    settings: Settings, counts: Mapping[str, int], credentials: Credentials, folder: Path, width: int, config_file: Path | None
) -> list[list[Process]]:
    """The services' processes: those behind the gateway, then the gateway, which is to stop first."""
    groups: list[list[Process]] = [[], []]
    number = 0
    for name, count in counts.items():
        environment = inherited() | {
            "CALLBOARD_TRANSPORT__KIND": "mqtt",
            "CALLBOARD_TRANSPORT__MQTT__URL": credentials.url,
            "CALLBOARD_TRANSPORT__MQTT__NAMESPACE": credentials.namespace,
            "CALLBOARD_TRANSPORT__MQTT__USERNAME": name,
            "CALLBOARD_TRANSPORT__MQTT__PASSWORD_FILE": str(folder / "broker" / f"{name}.password"),
            "CALLBOARD_AUTH__USERS_FILE": str(folder / "broker" / "users.json"),
            "CALLBOARD_GATEWAY__PORT": str(settings.gateway.port),
            "CALLBOARD_GATEWAY__SHARE_PORT": "true" if count > 1 else "false",
        }
        environment.pop("CALLBOARD_TRANSPORT__MQTT__PASSWORD", None)
        environment.pop("CALLBOARD_AUTH__USERS", None)
        config = [] if config_file is None else ["--config", str(config_file)]
        for index in range(count):
            number += 1
            title = name if count == 1 else f"{name}.{index + 1}"
            command = [sys.executable, "-m", "config.cli", "run", name, "--leash", *config]
            groups[name == "gateway"].append(Process(title, command, environment, width, number))
    return [group for group in groups if group]


async def _play(settings: Settings, groups: list[list[Process]], chosen: list[str], counts: Mapping[str, int]) -> None:
    told = told_to_stop()
    playing = asyncio.create_task(play(groups, told))
    if "gateway" in chosen:
        greeting = asyncio.create_task(_greet(settings, chosen, counts))
        await asyncio.wait((playing, greeting), return_when=asyncio.FIRST_COMPLETED)
        greeting.cancel()
    await playing


async def _greet(settings: Settings, chosen: list[str], counts: Mapping[str, int]) -> None:
    """Prints the first screen once every service answers."""
    wanted = len({manifest.service for manifest in compose.manifests(settings, chosen) if any(r.http for r in manifest.requests)})
    host = f"[{settings.gateway.host}]" if ":" in settings.gateway.host else settings.gateway.host
    url = f"http://{host}:{settings.gateway.port}/readyz"
    with patience("starting the services"):
        while await asyncio.to_thread(_there, url) < wanted:
            await asyncio.sleep(0.1)
    how = f"in {sum(counts.values())} processes and a broker"
    quickstart(settings, settings.gateway.port, chosen, how)


def _there(url: str) -> int:
    """How many services the gateway sees; fewer than none while it does not answer."""
    try:
        with urlopen(url, timeout=2) as answer:  # noqa: S310  # our own gateway's
            return int(msgspec.json.decode(answer.read())["services"])
    except (URLError, OSError, ValueError, KeyError):
        return -1
