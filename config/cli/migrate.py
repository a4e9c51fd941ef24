"""`callboard migrate`: bring the databases of services up to the installed version, before the services start."""

from pathlib import Path

import rich_click as click

from config import compose
from config.cli import candidates
from config.cli.common import loaded, run_loop, with_config, with_json
from config.cli.output import json_text, progress
from config.databases import migrate_all
from config.settings import Settings
from runtime.service.service import Definition


@click.command("migrate")
@click.argument("names", metavar="[SERVICE…]", nargs=-1, shell_complete=candidates.services)
@with_json
@with_config
def migrate_command(names: tuple[str, ...], as_json: bool, config_file: Path | None) -> None:
    """Apply the new migrations of the named services, or of all services, to their databases.

    A service does so itself when it starts. With this command it happens once, before any instance of the new version runs.
    Running it twice, or twice at once, does no harm.

    \b
    Examples:
      callboard migrate wallet
    """
    settings = loaded(config_file).settings
    found = [definition for definition in compose.definitions(settings, names) if definition.needs_database]
    for number, definition in enumerate(found, 1):
        name = definition.contract.name
        with progress(f"migrating {name} ({number} of {len(found)})"):
            count = run_loop(_migrate(settings, definition))
        click.echo(
            json_text({"service": name, "migrations": count}) if as_json else f"{name}: {count} new migrations were applied."
        )


async def _migrate(settings: Settings, definition: Definition) -> int:
    database = compose.databases(settings)(definition.contract.name)
    await database.open()
    try:
        return await migrate_all(database, definition)
    finally:
        await database.close()
