"""`callboard asyncapi`: the AsyncAPI document of the system, made from what its services declare."""

from pathlib import Path

import msgspec
import rich_click as click

from config.asyncapi import system_document
from config.cli.common import loaded, with_config


@click.command("asyncapi")
@click.option("--json", "as_json", is_flag=True, help="Print it on one line.")
@with_config
def asyncapi_command(as_json: bool, config_file: Path | None) -> None:
    """Print the AsyncAPI 3.0 document of the events and signals as JSON.

    It has the topics of MQTT, the services that send and receive each message, and the JSON Schema of its fields.

    \b
    Examples:
      callboard asyncapi > asyncapi.json
    """
    text = msgspec.json.encode(system_document(loaded(config_file).settings))
    click.echo((text if as_json else msgspec.json.format(text, indent=2)).decode())
