"""`callboard streams`: show how far each service has applied the events of the others, and repair what has stopped."""

from collections.abc import Mapping
from typing import Any

import rich_click as click

from config.cli import candidates
from config.cli.common import runs_subcommand, with_json, with_watch
from config.cli.operator import NO_DATABASE, Operator, chosen_services, with_operator
from config.cli.resume import resume_command
from config.cli.subscribers import shown_age
from config.cli.watch import Report, show
from runtime.durable.console import ForgetReader, ShowStreams, StreamReport


@click.group("streams", invoke_without_command=True)
@click.option(
    "--service",
    "names",
    multiple=True,
    metavar="SERVICE",
    shell_complete=candidates.services,
    help="Show only this service. May be repeated.",
)
@with_watch
@with_json
@with_operator
@click.pass_context
def streams_command(
    ctx: click.Context,
    names: tuple[str, ...],
    watched: bool,
    as_json: bool,
    operator: Operator,
) -> None:
    """Show the stream of every service, its readers, and how far each service has applied the streams of the others.

    `lag` is the number of events that were published and not applied yet. A reader is `gone` if no instance of it runs: its
    events are retained until it comes back or is forgotten.

    If `dev` or `up` runs in this folder, or a gateway is named, the running services are asked. Otherwise the databases in
    this folder are read.

    \b
    Examples:
      callboard streams --watch
      callboard streams --service wallet --json
      callboard streams resume wallet rides --skip-to 120
    """
    if not runs_subcommand(ctx):
        show(lambda: _report(operator, names), as_json=as_json, watched=watched)


def _report(operator: Operator, names: tuple[str, ...]) -> Report:
    reports = [operator.ask(name, ShowStreams()) for name in chosen_services(operator, names)]
    running = _running(operator)
    return Report(
        [_document(report, running) for report in reports],
        [
            [row for report in reports for row in _stream_rows(report, running)],
            [row for report in reports for row in _subscription_rows(report)],
        ],
        NO_DATABASE,
        is_marked=_needs_attention,
    )


def _needs_attention(row: Mapping[str, Any]) -> bool:
    return bool(row.get("") or row.get("reason") or row.get("dead letters"))


def _running(operator: Operator) -> set[str] | None:
    """Return the services that run, or None if that is not known."""
    return {str(row.get("service")) for row in operator.instances()} if operator.is_remote else None


def _document(report: StreamReport, running: set[str] | None) -> dict[str, object]:
    readers = [
        {
            "reader": one.reader,
            "seq": one.seq,
            "behind": one.behind,
            "silent": round(one.silent, 1),
            "gone": None if running is None else one.reader not in running,
        }
        for one in report.readers
    ]
    subscriptions = [
        {
            "publisher": one.publisher,
            "epoch": one.epoch,
            "seq": one.seq,
            "head": one.head,
            "lag": one.lag,
            "state": one.state,
            "reason": one.reason,
            "dead_letters": one.dead_letters,
        }
        for one in report.subscriptions
    ]
    return {
        "service": report.service,
        "epoch": report.epoch,
        "head": report.head,
        "oldest": report.oldest,
        "readers": readers,
        "subscriptions": subscriptions,
    }


def _stream_rows(report: StreamReport, running: set[str] | None) -> list[dict[str, object]]:
    stream: dict[str, object] = {"stream": report.service, "head": report.head, "oldest": report.oldest}
    if not report.readers:
        return [stream | {"reader": None, "applied": None, "behind": None, "silent": None, "": ""}]
    return [
        stream
        | {
            "reader": one.reader,
            "applied": one.seq,
            "behind": one.behind,
            "silent": shown_age(one.silent),
            "": "gone" if running is not None and one.reader not in running else "",
        }
        for one in report.readers
    ]


def _subscription_rows(report: StreamReport) -> list[dict[str, object]]:
    return [
        {
            "subscriber": report.service,
            "publisher": one.publisher,
            "applied": one.seq,
            "head": "?" if one.head is None else one.head,
            "lag": "?" if one.lag is None else one.lag,
            "dead letters": one.dead_letters,
            "state": one.state or "-",
            "reason": one.reason,
        }
        for one in report.subscriptions
    ]


@streams_command.command("forget")
@click.argument("service", shell_complete=candidates.services)
@click.argument("reader", shell_complete=candidates.services)
@with_operator
def forget_command(service: str, reader: str, operator: Operator) -> None:
    """Let SERVICE retain no more events for READER, which was removed. If READER pulls again, it is known again.

    \b
    Examples:
      callboard streams forget rides billing
    """
    operator.ask(service, ForgetReader(reader))
    click.echo(f"{service} retains no more events for {reader}.")


streams_command.add_command(resume_command)
