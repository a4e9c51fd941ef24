"""`callboard routes`, `callboard openapi` and `callboard config show`: what there is, without running it."""

from pathlib import Path
from typing import Any, cast

import msgspec
import rich_click as click

from config import compose
from config.cli.common import loaded, table, with_config
from runtime import Struct


@click.command("routes")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_config
def routes_command(as_json: bool, config_file: Path | None) -> None:
    """List the REST routes, and the requests they stand for."""
    rows: list[dict[str, str]] = []
    for manifest in compose.manifests(loaded(config_file).settings):
        for info in manifest.requests:
            if info.http is not None:
                allow = "anyone" if info.allow.anyone else ", ".join(info.allow.roles)
                rows.append(
                    {
                        "method": info.http.method,
                        "path": info.http.path,
                        "request": info.name,
                        "allow": allow,
                        "summary": info.summary,
                    }
                )
    rows.sort(key=lambda row: (row["path"], row["method"]))
    table(rows, as_json)


@click.command("openapi")
@with_config
def openapi_command(config_file: Path | None) -> None:
    """Print the OpenAPI document."""
    from gateway.openapi import document

    settings = loaded(config_file).settings
    text = msgspec.json.encode(document(settings.gateway.title, "0", compose.manifests(settings)))
    click.echo(msgspec.json.format(text, indent=2).decode())


@click.group("config")
def config_command() -> None:
    """Look at the settings."""


@config_command.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_config
def config_show(as_json: bool, config_file: Path | None) -> None:
    """Print every setting, its value and where that was set. Secrets are masked."""
    rows: list[dict[str, str]] = []
    for setting in loaded(config_file).rows():
        value = "***" if setting.secret and setting.value is not None else _shown(setting.value)
        rows.append({"setting": setting.name, "value": value, "source": setting.source})
    table(rows, as_json)


def _shown(value: Any) -> str:
    """A setting's value as JSON; structs, which may hold secrets, by their repr."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_shown(item) for item in cast(tuple[Any, ...], value)) + "]"
    return repr(value) if isinstance(value, Struct) else msgspec.json.encode(value).decode()
