"""`callboard resume`: let a subscription that waits for an operator continue."""

from pathlib import Path

import rich_click as click

from config import compose
from config.cli.common import loaded, run_loop, with_config
from config.cli.databases import database_of
from config.settings import Settings
from runtime import CallboardError
from runtime.durable.cursor import Cursors, digest_of
from runtime.durable.stream import Position
from runtime.service.service import Definition


@click.command("resume")
@click.argument("service")
@click.argument("publisher")
@click.option(
    "--known-types",
    is_flag=True,
    help="Continue without the events that this version of SERVICE cannot decode or does not take. They become dead letters.",
)
@click.option(
    "--set-aside",
    metavar="NUMBER",
    type=click.IntRange(1),
    help="Continue without the event with this number, which the log and `/readyz` name. It becomes a dead letter.",
)
@with_config
def resume_command(service: str, publisher: str, known_types: bool, set_aside: int | None, config_file: Path | None) -> None:
    """Let SERVICE continue to apply the events of PUBLISHER. Run it where the service runs: it writes to the service's database.

    A subscription that has stopped, because the publisher has pruned or lost events, begins again at the oldest event that
    the publisher still has.

    A service that was rolled back waits for its newer version at the first event that it cannot decode. With
    `--known-types` it continues with the others. This holds for the installed version only. The next version that can
    decode the dead letters applies them when it starts.

    An event that is tried again and again holds up all events after it, and so does one that is larger than the network
    carries. With `--set-aside` the service continues without it.

    A running service notices the change within half a minute.

    Examples: `callboard resume rides fleet`, `callboard resume rides fleet --known-types`,
    `callboard resume rides fleet --set-aside 17`
    """
    settings = loaded(config_file).settings
    [definition] = compose.definitions(settings, [service])
    events = definition.events_of(publisher)
    if not events:
        publishers = sorted({handler.spec.contract.name for handler in definition.events.values()})
        raise CallboardError(
            f"{service} takes no events of {publisher!r}: expected {' or '.join(publishers) or 'another service, because it takes none at all'}"
        )
    if known_types and set_aside is not None:
        raise CallboardError("--known-types and --set-aside are different remedies: expected one of them")
    run_loop(_resume(settings, definition, publisher, known_types, set_aside))
    if set_aside is not None:
        click.echo(
            f"{service} does not apply event {set_aside} of {publisher}: it becomes a dead letter once all events before it are applied."
        )
    elif known_types:
        click.echo(
            f"{service} continues with these events of {publisher}: {', '.join(sorted(events))}. Others become dead letters."
        )
    else:
        click.echo(f"{service} continues with the oldest event that {publisher} still has.")


async def _resume(settings: Settings, definition: Definition, publisher: str, known_types: bool, set_aside: int | None) -> None:
    service = definition.contract.name
    async with database_of(settings, service) as database:
        cursors = Cursors(publisher, database)
        cursor = await cursors.read()
        if cursor is None:
            raise CallboardError(f"{service} has not applied any events of {publisher} yet: there is nothing to resume")
        events = definition.events_of(publisher)
        if known_types:
            await cursors.accept(digest_of(events))
        elif set_aside is not None:
            if set_aside <= cursor.position.seq:
                raise CallboardError(
                    f"{service} has applied event {set_aside} of {publisher} already: expected a number above {cursor.position.seq}"
                )
            await cursors.set_aside(set_aside)
        elif cursor.stopped is None:
            raise CallboardError(f"{service} has not stopped to apply the events of {publisher}: there is nothing to resume")
        else:
            await cursors.resume(Position("", 0), dict.fromkeys(events, 0))
