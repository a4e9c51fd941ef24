"""`callboard services`: show the instances of a running system and their load."""

import time
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from config.cli.client import Client, describe_problem, with_gateway
from config.cli.common import loaded, with_config, with_json
from config.cli.output import print_error, progress, table
from runtime import CallboardError
from runtime.telemetry import printable

_COLUMNS = ("service", "node", "version", "state", "load", "in_flight", "requests", "events")


@click.command("services")
@click.option("--watch", is_flag=True, help="Update the table every second until Ctrl-C.")
@with_json
@with_gateway
@with_config
def services_command(
    watch: bool, as_json: bool, url: str, email: str | None, roles: tuple[str, ...], config_file: Path | None
) -> None:
    """Show every instance of a running system, as the gateway sees it.

    `load` is the number of messages that an instance is handling or has queued. `in_flight` is the number of those that
    this gateway sent. Operators and admins may use this command. If `dev` or `up` runs in this folder, the default user is
    operator@example.com.
    """
    client = Client(loaded(config_file).settings, url, email, roles)
    with progress("asking the gateway"):
        client.log_in(as_operator=True)
        rows = _fetch(client)
    if not watch:
        table([{name: str(row.get(name, "")) for name in _COLUMNS} for row in rows], as_json)
        return
    try:
        _watch(client, rows, as_json)
    except KeyboardInterrupt:
        return


def _watch(client: Client, rows: list[dict[str, Any]], as_json: bool) -> None:
    console = Console()
    if as_json or not console.is_terminal:
        while True:
            table([{name: str(row.get(name, "")) for name in _COLUMNS} for row in rows], as_json)
            time.sleep(1)
            rows = _fetch_again(client)
    with Live(_table(rows), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(_table(_fetch_again(client)), refresh=True)


def _fetch_again(client: Client) -> list[dict[str, Any]]:
    """Return the current instances, or an empty list if the gateway does not answer."""
    try:
        return _fetch(client)
    except CallboardError as error:
        print_error(f"{error}; trying again")
        try:
            client.log_in(as_operator=True)  # the token may have expired
        except CallboardError:
            pass
        return []


def _fetch(client: Client) -> list[dict[str, Any]]:
    status, answer = client.ask("GET", "/console/services")
    if status != 200:
        raise CallboardError(describe_problem(status, answer))
    try:
        return msgspec.convert(answer.get("items"), list[dict[str, Any]])
    except msgspec.ValidationError:
        raise CallboardError(f"{client.url}/console/services answered without a list of services: is that a gateway?") from None


def _table(rows: list[dict[str, Any]]) -> Table:
    instances = Table(box=None)
    for name in _COLUMNS:
        instances.add_column(name, justify="right" if name in ("load", "in_flight", "requests", "events") else "left")
    for row in rows:
        instances.add_row(
            *(escape(printable(str(row.get(name, "")))) for name in _COLUMNS),
            style="" if row.get("state") == "there" else "yellow",
        )
    return instances
