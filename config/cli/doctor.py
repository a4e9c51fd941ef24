"""`callboard doctor`: check what services need, on the machine they run on."""

import asyncio
import sys
from pathlib import Path

import rich_click as click

from config import compose
from config.cli import candidates
from config.cli.common import loaded, with_config, with_json
from config.cli.output import json_text
from config.doctor import examine
from config.load import Loaded
from runtime.telemetry import printable

_MARKS = {
    "ok": click.style("ok     ", fg="green"),
    "warning": click.style("warning", fg="yellow"),
    "fault": click.style("FAULT  ", fg="red"),
}


@click.command("doctor")
@click.argument("names", metavar="[SERVICE…]", nargs=-1, shell_complete=candidates.services)
@with_json
@with_config
def doctor_command(names: tuple[str, ...], as_json: bool, config_file: Path | None) -> None:
    """Check the settings, limits, databases, keys, broker, access list, peers, and clock that services need.

    Prints one line per check, with advice if something is wrong. Without SERVICE, checks the services whose credentials
    are configured here, or all services. The exit status is 1 if any check fails.

    \b
    Examples:
      callboard doctor
      callboard doctor wallet --json
    """
    configuration = loaded(config_file)
    compose.selected(configuration.settings, names)
    if asyncio.run(_examine(configuration, names, as_json)):
        sys.exit(1)


async def _examine(configuration: Loaded, names: tuple[str, ...], as_json: bool) -> bool:
    """Print the findings as they arrive. Return True if any of them is a fault."""
    faulty = False
    async for finding in examine(configuration, names):
        faulty = faulty or finding.state == "fault"
        if as_json:
            click.echo(json_text(finding._asdict()))
        else:
            click.echo(f"{_MARKS[finding.state]}  {finding.what:20}  {printable(finding.said)}")
    return faulty
