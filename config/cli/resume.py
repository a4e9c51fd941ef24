"""`callboard resume`, also `callboard streams resume`: let a subscription that waits for an operator continue."""

import rich_click as click

from config.cli import candidates
from config.cli.operator import Operator, with_operator
from runtime.durable.console import ResumeStream


@click.command("resume")
@click.argument("service", shell_complete=candidates.services)
@click.argument("publisher", shell_complete=candidates.services)
@click.option(
    "--skip-to",
    metavar="NUMBER",
    type=click.IntRange(1),
    help="Continue with the event with this number. Those before it are not applied.",
)
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
@with_operator
def resume_command(
    service: str,
    publisher: str,
    skip_to: int | None,
    known_types: bool,
    set_aside: int | None,
    operator: Operator,
) -> None:
    """Let SERVICE continue to apply the events of PUBLISHER.

    A subscription that has stopped, because the publisher has pruned or lost events, begins again at the oldest event that
    the publisher still has, or with `--skip-to` at a later one.

    A service that was rolled back waits for its newer version at the first event that it cannot decode. With
    `--known-types` it continues with the others. This holds for the installed version only. The next version that can
    decode the dead letters applies them when it starts.

    An event that is tried again and again holds up all events after it, and so does one that is larger than the network
    carries. With `--set-aside` the service continues without it.

    Without a running system, the service's database in this folder is changed. A service that is running beside it notices
    that within half a minute.

    \b
    Examples:
      callboard resume rides fleet --skip-to 120
      callboard resume rides fleet --known-types
      callboard resume rides fleet --set-aside 17
    """
    resumed = operator.ask(service, ResumeStream(publisher, skip_to, known_types, set_aside))
    if set_aside is not None:
        click.echo(
            f"{service} does not apply event {set_aside} of {publisher}: it becomes a dead letter once all events before it are applied."
        )
    elif known_types:
        click.echo(
            f"{service} continues with these events of {publisher}: {', '.join(resumed.types)}. Others become dead letters."
        )
    elif skip_to is not None:
        click.echo(f"{service} continues with event {skip_to} of {publisher}.")
    else:
        click.echo(f"{service} continues with the oldest event that {publisher} still has.")
