"""`callboard compensations`: show the compensations of a service that nobody has answered yet."""

from datetime import UTC, datetime
from pathlib import Path

import rich_click as click

from config import compose
from config.cli import candidates
from config.cli.common import loaded, run_loop, with_config, with_json
from config.cli.output import json_value, table
from config.databases import database_of
from config.settings import Settings
from runtime import CallboardError
from runtime.durable.compensations import Compensation, all_compensations, drop_compensation


@click.command("compensations")
@click.argument("service", shell_complete=candidates.services)
@click.option("--drop", "drop", metavar="ID", help="Delete the compensation with this id. Its request is not made any more.")
@with_json
@with_config
def compensations_command(service: str, drop: str | None, as_json: bool, config_file: Path | None) -> None:
    """Show the compensations of SERVICE that nobody has answered yet. Run it where the service runs: it reads the service's database.

    If a handler fails, the requests that it registered with `ctx.undo` are made. One that nobody answers is stored, and made
    again until its callee answers. It does not appear here any more after that.

    \b
    Examples:
      callboard compensations rides
      callboard compensations rides --json
    """
    settings = loaded(config_file).settings
    compose.definitions(settings, [service])
    if drop is not None:
        run_loop(_drop(settings, service, drop))
        click.echo(f"The compensation {drop} is deleted.")
        return
    table([_row(one, as_json) for one in run_loop(_all(settings, service))], as_json)


async def _all(settings: Settings, service: str) -> list[Compensation]:
    async with database_of(settings, service) as database:
        return await all_compensations(database)


async def _drop(settings: Settings, service: str, id: str) -> None:
    async with database_of(settings, service) as database:
        if not await drop_compensation(database, id):
            raise CallboardError(f"{service} has no compensation {id!r}: `callboard compensations {service}` shows their ids")


def _row(compensation: Compensation, as_json: bool) -> dict[str, object]:
    return {
        "id": compensation.id,
        "request": compensation.request,
        "body": json_value(compensation.body) if as_json else compensation.body,
        "since": datetime.fromtimestamp(compensation.at, UTC).isoformat(timespec="seconds"),
        "attempts": compensation.attempts,
        "error": compensation.error,
    }
