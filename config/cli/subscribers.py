"""`callboard subscribers`: show for whom a service retains its events, and forget a subscriber that was removed."""

import rich_click as click

from config.cli import candidates
from config.cli.common import with_json
from config.cli.operator import Operator, with_operator
from config.cli.output import table
from runtime.durable.console import ForgetReader, ShowStreams, StreamReader


@click.command("subscribers")
@click.argument("service", shell_complete=candidates.services)
@click.option("--forget", metavar="SUBSCRIBER", help="Retain no more events for this subscriber.")
@with_json
@with_operator
def subscribers_command(
    service: str,
    forget: str | None,
    as_json: bool,
    operator: Operator,
) -> None:
    """Show the subscribers of SERVICE's events.

    `cursor` is the number of the last event that a subscriber is known to have applied, `behind` is how many followed, and
    `age` is how long ago the subscriber asked for events, without the time in which SERVICE was not running. The service
    stores these figures about once a minute.

    SERVICE retains events until every subscriber has applied them, so one that was removed keeps them until it is
    forgotten: by this command, or automatically after 30 days. A subscriber that comes back too late stops, and reports the
    events that it has missed.

    \b
    Examples:
      callboard subscribers rides
      callboard subscribers rides --forget billing
    """
    if forget is not None:
        operator.ask(service, ForgetReader(forget))
        click.echo(f"{service} retains no more events for {forget}.")
        return
    readers = operator.ask(service, ShowStreams()).readers
    table([_row(one, as_json) for one in readers], as_json)
    if not readers and not as_json:
        click.echo(f"No service has asked for the events of {service} yet.")


def _row(one: StreamReader, as_json: bool) -> dict[str, object]:
    age = round(one.silent) if as_json else shown_age(one.silent)
    return {"subscriber": one.reader, "cursor": one.seq, "behind": one.behind, "age": age}


def shown_age(seconds: float) -> str:
    """Return a duration in its two largest units."""
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
