"""`callboard services`: show the instances of a running system and their load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich_click as click

from config.cli.client import with_gateway
from config.cli.common import loaded, with_config, with_json, with_watch
from config.cli.operator import Operator
from config.cli.watch import Report, show

_COLUMNS = ("service", "node", "version", "state", "load", "in_flight", "requests", "events")


@click.command("services")
@with_watch
@with_json
@with_gateway
@with_config
def services_command(
    watched: bool, as_json: bool, url: str, email: str | None, roles: tuple[str, ...], config_file: Path | None
) -> None:
    """Show every instance of a running system, as the gateway sees it.

    `load` is the number of messages that an instance is handling or has queued. `in_flight` is the number of those that
    this gateway sent. Operators and admins may use this command. If `dev` or `up` runs in this folder, no login is needed.

    \b
    Examples:
      callboard services --watch
      callboard services --url https://rental.example --as operator@example.com
    """
    operator = Operator(loaded(config_file).settings, url, email, roles, needs_gateway=True)

    def read() -> Report:
        rows = [{name: row.get(name) for name in _COLUMNS} for row in operator.instances()]
        return Report(rows, [rows], is_marked=_is_away)

    show(read, as_json=as_json, watched=watched)


def _is_away(row: Mapping[str, Any]) -> bool:
    return bool(row["state"] != "there")
