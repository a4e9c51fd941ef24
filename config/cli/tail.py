"""`callboard tail`: follow the events and signals of a running system."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import rich_click as click

from config.cli.client import Client, with_gateway
from config.cli.common import loaded, with_config, with_json
from config.cli.output import json_text, print_error, progress
from runtime import CallboardError
from runtime.telemetry import printable

_COLOURS = {"event": "green", "signal": "cyan"}


@click.command("tail")
@click.argument("patterns", nargs=-1, metavar="[PATTERN…]")
@click.option("--events", "only_events", is_flag=True, help="Show events only.")
@click.option("--signals", "only_signals", is_flag=True, help="Show signals only.")
@with_json
@with_gateway
@with_config
def tail_command(
    patterns: tuple[str, ...],
    only_events: bool,
    only_signals: bool,
    as_json: bool,
    url: str,
    email: str | None,
    roles: tuple[str, ...],
    config_file: Path | None,
) -> None:
    """Show events and signals as they happen. Stop with Ctrl-C.

    Shows only messages whose name matches a PATTERN, such as `rides.*` or `fleet.Telemetry`, or all messages if no PATTERN
    is given. Operators and admins may use this command. If `dev` or `up` runs in this folder, the default user is
    operator@example.com.

    Example: `callboard tail 'rides.*' --as operator@example.com`
    """
    client = Client(loaded(config_file).settings, url, email, roles)
    query = [("match", pattern) for pattern in patterns]
    query += [("kind", kind) for kind, wanted in (("event", only_events), ("signal", only_signals)) if wanted]
    path = f"/console/tail?{urlencode(query)}"
    try:
        _show(client, path, as_json)
        while True:  # the token has expired, or the system is restarting
            try:
                _show(client, path, as_json)
            except CallboardError as error:
                print_error(f"{error}; trying again")
            time.sleep(1)
    except KeyboardInterrupt:
        return


def _show(client: Client, path: str, as_json: bool) -> None:
    """Show messages until the server ends the stream.

    Raises:
        CallboardError: if the gateway cannot be reached or refuses the request.
    """
    with progress("logging in"):
        client.log_in(as_operator=True)
    for kind, data in client.follow(path):
        if kind == "end":
            print_error(f"the stream has ended: {data['reason']}")
        elif as_json:
            click.echo(json_text({"kind": kind, **data}))
        elif kind == "dropped":
            print_error(f"{data['signals']} signals arrived too fast and are not shown")
        elif kind == "gap":
            print_error(f"events of {data['from']} are missing here: {data['why']}")
        else:
            click.echo(_line(kind, data))


def _line(kind: str, data: dict[str, Any]) -> str:
    at = datetime.fromisoformat(data["at"]).astimezone() if "at" in data else datetime.now().astimezone()
    number = f"#{data['seq']} " if "seq" in data else ""
    name = click.style(f"{printable(data['name']):24}", fg=_COLOURS.get(kind), bold=kind == "event")
    return f"{at:%H:%M:%S.%f}"[:-3] + f" {kind:6} {name} {number}{json_text(data['body'])}"
