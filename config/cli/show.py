"""`callboard routes`, `callboard openapi`, and `callboard config show`: inspect the configured system without running it."""

from pathlib import Path

import msgspec
import rich_click as click

from config import compose
from config.cli.common import loaded, with_config, with_json
from config.cli.operations import project_openapi
from config.cli.output import json_text, table
from config.shown import shown, shown_values
from runtime import CallboardError
from runtime.node.node import check_together


@click.command("routes")
@with_json
@with_config
def routes_command(as_json: bool, config_file: Path | None) -> None:
    """List the REST routes with the request behind each and the roles that may call it.

    \b
    Examples:
      callboard routes
    """
    rows = [
        {
            "method": info.http.method,
            "path": info.http.path,
            "request": info.name,
            "allow": info.allow.shown(),
            "summary": info.summary,
        }
        for manifest in compose.manifests(loaded(config_file).settings)
        for info in manifest.requests
        if info.http is not None
    ]
    rows.sort(key=lambda row: (row["path"], row["method"]))
    table(rows, as_json)


@click.command("openapi")
@click.option("--json", "as_json", is_flag=True, help="Print it on one line.")
@with_config
def openapi_command(as_json: bool, config_file: Path | None) -> None:
    """Print the OpenAPI document of the REST API as JSON.

    \b
    Examples:
      callboard openapi > openapi.json
    """
    text = project_openapi(loaded(config_file).settings)
    click.echo((text if as_json else msgspec.json.format(text, indent=2)).decode())


@click.group("config")
def config_command() -> None:
    """Inspect the settings.

    \b
    Examples:
      callboard config show
      callboard config check
    """


@config_command.command("show")
@with_json
@with_config
def config_show(as_json: bool, config_file: Path | None) -> None:
    """Print every setting with its value and where it was set. Secrets are masked.

    \b
    Examples:
      callboard config show
      callboard config show --config deployment.toml --json
    """
    found = loaded(config_file)
    table(shown_values(found) if as_json else shown(found), as_json)


@config_command.command("check")
@with_json
@with_config
def config_check(as_json: bool, config_file: Path | None) -> None:
    """Check every setting, the classes of the services, and that they fit together, without running anything.

    \b
    Examples:
      callboard config check
      CALLBOARD_DATABASE__URL=postgresql://db/rental callboard config check
    """
    settings = loaded(config_file).settings
    services = compose.catalogue(settings)
    found = list(compose.rows(loaded(config_file)))
    for setting in found:
        if setting.source == "not set":
            raise CallboardError(f"{setting.name} is not set: it has no default")
    check_together([cls.definition for cls in services.values()])
    for name in services:
        compose.database_url(settings, name)
    compose.transport(settings)
    if as_json:
        click.echo(json_text({"services": list(services), "settings": len(found)}))
        return
    click.echo(f"The settings are right, and {len(services) - 1} services fit together: {', '.join(services)}.")
