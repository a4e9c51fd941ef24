"""`callboard doctor`: what a service needs, looked at from where it runs."""

import asyncio
import sys
from pathlib import Path

import msgspec
import rich_click as click

from config import compose
from config.cli.common import loaded, with_config
from config.doctor import examine
from config.load import Loaded

_MARKS = {
    "ok": click.style("ok     ", fg="green"),
    "warning": click.style("warning", fg="yellow"),
    "fault": click.style("FAULT  ", fg="red"),
}


@click.command("doctor")
@click.argument("names", metavar="[SERVICE…]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@with_config
def doctor_command(names: tuple[str, ...], as_json: bool, config_file: Path | None) -> None:
    """Check broker, peers, databases, keys, clock, limits and access list, from here: one line each, and what to do.

    Without names it looks for the services whose credentials are here. Ends with status 1 if something is wrong.
    """
    found = loaded(config_file)
    compose.chosen(found.settings, names)
    if asyncio.run(_say(found, names, as_json)):
        sys.exit(1)


async def _say(found: Loaded, names: tuple[str, ...], as_json: bool) -> bool:
    """Says one finding after the other, and at the end whether anything was wrong."""
    wrong = False
    async for finding in examine(found, names):
        wrong = wrong or finding.state == "fault"
        if as_json:
            click.echo(msgspec.json.encode(finding._asdict()).decode())
        else:
            click.echo(f"{_MARKS[finding.state]}  {finding.what:20}  {finding.said}")
    return wrong
