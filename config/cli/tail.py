"""`callboard tail`: events and signals as they pass through a running system."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import rich_click as click

from config.cli.client import Client, with_gateway
from config.cli.common import loaded, patience, with_config
from runtime import CallboardError

_COLOURS = {"event": "green", "signal": "cyan"}


@click.command("tail")
@click.argument("patterns", nargs=-1, metavar="[PATTERN…]")
@click.option("--events", "only_events", is_flag=True, help="Events only.")
@click.option("--signals", "only_signals", is_flag=True, help="Signals only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_gateway
@with_config
def tail_command(
    patterns: tuple[str, ...],
    only_events: bool,
    only_signals: bool,
    as_json: bool,
    url: str,
    email: str | None,
    config_file: Path | None,
) -> None:
    """Show events and signals as they pass, as in `callboard tail 'rides.*' --as operator@example.com`. Stop it with Ctrl-C.

    PATTERNs narrow the names (`rides.*`, `fleet.Telemetry`); without any, everything is shown. Operators and admins may look.
    """
    client = Client(loaded(config_file).settings, url, email)
    query = [("match", pattern) for pattern in patterns]
    query += [("kind", kind) for kind, wanted in (("event", only_events), ("signal", only_signals)) if wanted]
    path = f"/console/tail?{urlencode(query)}"
    try:
        _show(client, path, as_json)
        while True:  # the token has expired, or the system is started anew
            try:
                _show(client, path, as_json)
            except CallboardError as error:
                click.echo(f"callboard: {error}; trying again", err=True)
            time.sleep(1)
    except KeyboardInterrupt:
        return


def _show(client: Client, path: str, as_json: bool) -> None:
    """Shows what passes until the server ends it. Raises `CallboardError`."""
    with patience("logging in"):
        client.log_in("operator@example.com")
    for kind, data in client.follow(path):
        if kind == "end":
            click.echo(f"callboard: the stream has ended: {data['reason']}", err=True)
        elif as_json:
            click.echo(msgspec.json.encode({"kind": kind, **data}).decode())
        elif kind == "dropped":
            click.echo(f"callboard: {data['signals']} signals came too fast and are not shown", err=True)
        elif kind == "gap":
            click.echo(f"callboard: events of {data['from']} are missing here: {data['why']}", err=True)
        else:
            click.echo(_line(kind, data))


def _line(kind: str, data: dict[str, Any]) -> str:
    at = datetime.fromisoformat(data["at"]).astimezone() if "at" in data else datetime.now().astimezone()
    number = f"#{data['seq']} " if "seq" in data else ""
    name = click.style(f"{data['name']:24}", fg=_COLOURS.get(kind), bold=kind == "event")
    return f"{at:%H:%M:%S.%f}"[:-3] + f" {kind:6} {name} {number}{msgspec.json.encode(data['body']).decode()}"
