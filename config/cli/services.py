"""`callboard services`: who is there, and how much it has to do."""

import time
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from config.cli.client import Client, said, with_gateway
from config.cli.common import loaded, patience, table, with_config
from runtime import CallboardError

_COLUMNS = ("service", "node", "version", "state", "load", "in_flight", "requests", "events")


@click.command("services")
@click.option("--watch", is_flag=True, help="Go on showing, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_gateway
@with_config
def services_command(watch: bool, as_json: bool, url: str, email: str | None, config_file: Path | None) -> None:
    """Show every instance of a running system: its node, version, state and load, as the gateway sees it.

    The load is how many messages an instance works on or has waiting; `in_flight` those of them that this gateway asked for.
    Operators and admins may look; where `dev` or `up` runs in this folder, its operator does unless --as names another.
    """
    client = Client(loaded(config_file).settings, url, email)
    with patience("asking who is there"):
        client.log_in("operator@example.com")
        rows = _ask(client)
    if not watch:
        table([{name: str(row[name]) for name in _COLUMNS} for row in rows], as_json)
        return
    try:
        _watch(client, rows, as_json)
    except KeyboardInterrupt:
        return


def _watch(client: Client, rows: list[dict[str, Any]], as_json: bool) -> None:
    console = Console()
    if as_json or not console.is_terminal:
        while True:
            table([{name: str(row[name]) for name in _COLUMNS} for row in rows], as_json)
            time.sleep(1)
            rows = _again(client)
    with Live(_shown(rows), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(_shown(_again(client)), refresh=True)


def _again(client: Client) -> list[dict[str, Any]]:
    """Who is there now; nobody while the gateway does not answer."""
    try:
        return _ask(client)
    except CallboardError as error:
        click.echo(f"callboard: {error}; trying again", err=True)
        try:
            client.log_in("operator@example.com")  # the token has expired
        except CallboardError:
            pass
        return []


def _ask(client: Client) -> list[dict[str, Any]]:
    status, answer = client.ask("GET", "/console/services")
    if status != 200:
        raise CallboardError(said(status, answer))
    found: list[dict[str, Any]] = answer["items"]
    return found


def _shown(rows: list[dict[str, Any]]) -> Table:
    shown = Table(box=None)
    for name in _COLUMNS:
        shown.add_column(name, justify="right" if name in ("load", "in_flight", "requests", "events") else "left")
    for row in rows:
        shown.add_row(*(str(row[name]) for name in _COLUMNS), style="" if row["state"] == "there" else "yellow")
    return shown
