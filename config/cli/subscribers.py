"""`callboard subscribers`: show for whom a service retains its events, and forget a subscriber that was removed."""

from pathlib import Path

import rich_click as click

from config import compose
from config.cli.common import loaded, run_loop, with_config, with_json
from config.cli.databases import database_of
from config.cli.output import table
from config.settings import Settings
from runtime import CallboardError, Clock
from runtime.durable.retention import KnownSubscriber, Retention


@click.command("subscribers")
@click.argument("service")
@click.option("--forget", metavar="SUBSCRIBER", help="Retain no more events for this subscriber.")
@with_json
@with_config
def subscribers_command(service: str, forget: str | None, as_json: bool, config_file: Path | None) -> None:
    """Show the subscribers of SERVICE's events. Run it where the service runs: it reads the service's database.

    `cursor` is the number of the last event that a subscriber is known to have applied, `behind` is how many followed, and
    `age` is how long ago the subscriber asked for events, without the time in which SERVICE was not running. The service
    stores these figures about once a minute.

    SERVICE retains events until every subscriber has applied them, so one that was removed keeps them until it is
    forgotten: by this command, or automatically after 30 days. A subscriber that comes back too late stops, and reports the
    events that it has missed.

    Examples: `callboard subscribers rides`, `callboard subscribers rides --forget billing`
    """
    settings = loaded(config_file).settings
    compose.definitions(settings, [service])  # names a service that does not exist
    if forget is not None:
        run_loop(_forget(settings, service, forget))
        click.echo(f"{service} retains no more events for {forget}.")
        return
    head, known = run_loop(_known(settings, service))
    table([_row(one, head, as_json) for one in known], as_json)
    if not known and not as_json:
        click.echo(f"No service has asked for the events of {service} yet.")


def _row(one: KnownSubscriber, head: int, as_json: bool) -> dict[str, str]:
    age = f"{one.silent:.0f}" if as_json else _age(one.silent)
    return {"subscriber": one.subscriber, "cursor": str(one.seq), "behind": str(head - one.seq), "age": age}


def _age(seconds: float) -> str:
    """Return a duration in its two largest units."""
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


async def _known(settings: Settings, service: str) -> tuple[int, list[KnownSubscriber]]:
    async with database_of(settings, service) as database:
        head = await database.fetch_one("SELECT seq FROM callboard_stream_head")
        return (0 if head is None else head["seq"]), await Retention(database, Clock()).subscribers()


async def _forget(settings: Settings, service: str, subscriber: str) -> None:
    async with database_of(settings, service) as database:
        retention = Retention(database, Clock())
        if not await retention.forget(subscriber):
            names = [known.subscriber for known in await retention.subscribers()]
            raise CallboardError(
                f"{service} has no subscriber {subscriber!r}: expected {' or '.join(names) or 'none, because none is known'}"
            )
