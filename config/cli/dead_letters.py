"""`callboard dead-letters`: show the events whose handlers kept failing, and apply them again or drop them."""

import sys
from collections.abc import Iterator

import msgspec
import rich_click as click

from config.cli import candidates
from config.cli.common import F, runs_subcommand, with_json, with_watch
from config.cli.operator import NO_DATABASE, Operator, chosen_services, with_operator
from config.cli.output import json_text, json_value
from config.cli.watch import Report, show
from runtime import CallboardError
from runtime.durable.console import (
    MOST_LETTERS,
    DeadLetterInfo,
    DropDeadLetters,
    ListDeadLetters,
    RetryDeadLetter,
    ShowDeadLetter,
)


def _filters(function: F) -> F:
    publisher = click.option(
        "--publisher",
        default="",
        metavar="SERVICE",
        shell_complete=candidates.services,
        help="Only the events of this publisher.",
    )
    type_ = click.option(
        "--type",
        "type_",
        default="",
        metavar="EVENT",
        shell_complete=candidates.events,
        help="Only events of this type, such as rides.RideEnded.",
    )
    return publisher(type_(function))


@click.group("dead-letters", invoke_without_command=True)
@_filters
@with_watch
@with_json
@with_operator
@click.pass_context
def dead_letters_command(
    ctx: click.Context, publisher: str, type_: str, watched: bool, as_json: bool, operator: Operator
) -> None:
    """Show the events whose handlers kept failing, and apply them again or drop them.

    If `dev` or `up` runs in this folder, or a gateway is named, the running services are asked. Otherwise the databases in
    this folder are read.

    \b
    Examples:
      callboard dead-letters --watch
      callboard dead-letters retry wallet --all
    """
    if not runs_subcommand(ctx):
        show(lambda: _report(operator, (), publisher, type_), as_json=as_json, watched=watched)


def _selection(function: F) -> F:
    ids = click.argument("ids", metavar="[ID…]", nargs=-1)
    every = click.option("--all", "every", is_flag=True, help="All dead letters of the service.")
    return ids(every(_filters(function)))


@dead_letters_command.command("list")
@click.argument("names", metavar="[SERVICE…]", nargs=-1, shell_complete=candidates.services)
@_filters
@with_watch
@with_json
@with_operator
def list_command(
    names: tuple[str, ...],
    publisher: str,
    type_: str,
    watched: bool,
    as_json: bool,
    operator: Operator,
) -> None:
    """Show the dead letters of the named services, or of all services, the oldest first.

    \b
    Examples:
      callboard dead-letters list wallet --type rides.RideEnded
      callboard dead-letters list --watch
    """
    show(lambda: _report(operator, names, publisher, type_), as_json=as_json, watched=watched)


def _report(operator: Operator, names: tuple[str, ...], publisher: str, type_: str) -> Report:
    services = chosen_services(operator, names)
    found = [
        {"service": name, **msgspec.structs.asdict(letter)}
        for name in services
        for letter in _letters(operator, name, publisher, type_)
    ]
    rows = [{key: str(value)[:80] if isinstance(value, str) else value for key, value in letter.items()} for letter in found]
    return Report(found, [rows], "There are no dead letters." if services else NO_DATABASE)


def _letters(operator: Operator, service: str, publisher: str, type_: str) -> Iterator[DeadLetterInfo]:
    after = ""
    while True:
        page = operator.ask(service, ListDeadLetters(publisher, type_, after))
        yield from page.items
        if not page.next:
            return
        after = page.next


@dead_letters_command.command("show")
@click.argument("service", shell_complete=candidates.services)
@click.argument("id_", metavar="ID")
@with_json
@with_operator
def show_command(service: str, id_: str, as_json: bool, operator: Operator) -> None:
    """Show a dead letter with its body and the last error of its handler.

    \b
    Examples:
      callboard dead-letters show wallet 01980f2e-6a1c-7c3e-9d54-0a4c6b1f2e77
    """
    letter = msgspec.structs.asdict(operator.ask(service, ShowDeadLetter(id_)))
    click.echo(json_text({**letter, "body": json_value(letter["body"])}, indent=not as_json))


@dead_letters_command.command("retry")
@click.argument("service", shell_complete=candidates.services)
@_selection
@with_json
@with_operator
def retry_command(
    service: str,
    ids: tuple[str, ...],
    every: bool,
    publisher: str,
    type_: str,
    as_json: bool,
    operator: Operator,
) -> None:
    """Apply dead letters of SERVICE again, the oldest first. Each is applied exactly once, or stays a dead letter.

    The service has to be running. The exit status is 1 if a handler fails again.

    \b
    Examples:
      callboard dead-letters retry wallet 01980f2e-6a1c-7c3e-9d54-0a4c6b1f2e77
      callboard dead-letters retry wallet --all
      callboard dead-letters retry wallet --type rides.RideEnded
    """
    chosen = _chosen(operator, service, ids, every, publisher, type_)
    failed = applied = 0
    for id_ in dict.fromkeys(chosen):
        outcome = operator.ask(service, RetryDeadLetter(id_))
        failed += bool(outcome.error)
        applied += outcome.found and not outcome.error
        if as_json:
            click.echo(json_text({"id": id_, **msgspec.structs.asdict(outcome)}))
        elif not outcome.found:
            click.echo(f"{id_} is not a dead letter any more")
        else:
            click.echo(f"{id_} stays a dead letter: {_one_line(outcome.error)}" if outcome.error else f"{id_} was applied")
    if not as_json:
        click.echo(f"{applied} applied, {failed} failed")
    if failed:
        sys.exit(1)


@dead_letters_command.command("drop")
@click.argument("service", shell_complete=candidates.services)
@_selection
@with_json
@with_operator
def drop_command(
    service: str,
    ids: tuple[str, ...],
    every: bool,
    publisher: str,
    type_: str,
    as_json: bool,
    operator: Operator,
) -> None:
    """Delete dead letters of SERVICE. Their events are never applied.

    \b
    Examples:
      callboard dead-letters drop wallet 01980f2e-6a1c-7c3e-9d54-0a4c6b1f2e77
      callboard dead-letters drop wallet --publisher rides
    """
    chosen = _chosen(operator, service, ids, every, publisher, type_)
    dropped = sum(
        operator.ask(service, DropDeadLetters(tuple(chosen[at : at + MOST_LETTERS]))).count
        for at in range(0, len(chosen), MOST_LETTERS)
    )
    click.echo(json_text({"dropped": dropped}) if as_json else f"{dropped} dropped")


def _chosen(operator: Operator, service: str, ids: tuple[str, ...], every: bool, publisher: str, type_: str) -> list[str]:
    """Return the ids that a command names, or those of the dead letters that its options select."""
    selects = every or bool(publisher or type_)
    if bool(ids) is selects:
        raise CallboardError("which dead letters? expected ids, or else --all, --publisher, or --type")
    if not ids:
        return [letter.id for letter in _letters(operator, service, publisher, type_)]
    for id_ in ids:
        operator.ask(service, ShowDeadLetter(id_))  # names one that does not exist, before anything is changed
    return list(ids)


def _one_line(text: str) -> str:
    return " ".join(text.split())
