"""`callboard map`: a picture of the system, made from what its services say of themselves."""

from pathlib import Path

import rich_click as click

from config import compose
from config.cli.common import loaded, with_config
from config.cli.output import json_text
from config.system_map import as_mermaid, as_svg, system_map


@click.command("map")
@click.option(
    "--format", "style", type=click.Choice(("mermaid", "svg")), default="mermaid", show_default=True, help="What to print."
)
@click.option("--json", "as_json", is_flag=True, help="Print the services and the arrows between them as JSON.")
@with_config
def map_command(style: str, as_json: bool, config_file: Path | None) -> None:
    """Print a picture of the services: who calls whom, and whose events reach whom.

    \b
    Examples:
      callboard map --format svg > docs/system.svg
    """
    services = compose.catalogue(loaded(config_file).settings)
    found = system_map(cls.definition for cls in services.values())
    if as_json:
        click.echo(json_text({"services": found.services, "edges": [edge._asdict() for edge in found.edges]}))
        return
    click.echo(as_mermaid(found) if style == "mermaid" else as_svg(found), nl=False)
