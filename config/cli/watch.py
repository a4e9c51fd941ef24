"""Show the state of a system once, or every second with `--watch`: as tables for people, and as JSON for programs."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, NamedTuple

import rich_click as click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from config.cli.output import Rows, cell, json_text, print_error, table_lines, without_progress
from runtime import CallboardError
from runtime.clock import rfc3339

_SECONDS = 1.0


def _never(_: Mapping[str, Any]) -> bool:
    return False


class Report(NamedTuple):
    """The output of a command.

    Attributes:
        documents: the values to print as JSON.
        tables: the tables to print for people. Empty ones are left out.
        otherwise: the text to print if all tables are empty.
        is_marked: returns whether a row is highlighted in a terminal that is watched.
    """

    documents: Sequence[Any]
    tables: Sequence[Rows]
    otherwise: str = ""
    is_marked: Callable[[Mapping[str, Any]], bool] = _never

    def lines(self) -> list[str]:
        """Return the tables as text."""
        lines = [line for rows in self.tables if rows for line in ("", *table_lines(rows))][1:]
        return lines or [self.otherwise] * bool(self.otherwise)


def show(read: Callable[[], Report], *, as_json: bool, watched: bool) -> None:
    """Show a report once, or again every second until Ctrl-C.

    Args:
        read: returns the report as it is now.
        as_json: whether to print JSON: each document on a line, or all documents of a second on a line if it is watched.
        watched: whether to show it again. An error after the first time is shown, too, and does not end that.

    Raises:
        CallboardError: if it cannot be read the first time.
    """
    report = read()
    if not watched:
        for line in map(json_text, report.documents) if as_json else report.lines():
            click.echo(line)
        return
    console = Console()
    view = _JsonView() if as_json else _LiveView(console) if console.is_terminal else _PlainView()
    try:
        with without_progress(), view.drawing():
            view.show(report)
            while True:
                time.sleep(_SECONDS)
                try:
                    report = read()
                except CallboardError as error:
                    view.fail(f"{error}; trying again")
                else:
                    view.show(report)
    except KeyboardInterrupt:
        return


class _View(ABC):
    """Shows reports one after the other."""

    def drawing(self) -> AbstractContextManager[object]:
        """Return a context in which the view may draw on the terminal."""
        return nullcontext()

    @abstractmethod
    def show(self, report: Report) -> None: ...

    @abstractmethod
    def fail(self, error: str) -> None:
        """Show that there is no report now."""


class _JsonView(_View):
    """Prints a line for each report."""

    def show(self, report: Report) -> None:
        click.echo(json_text({"at": rfc3339(datetime.now(UTC)), "items": report.documents}))

    def fail(self, error: str) -> None:
        click.echo(json_text({"at": rfc3339(datetime.now(UTC)), "error": error}))


class _PlainView(_View):
    """Prints each report that differs from the one before, below the time."""

    def __init__(self) -> None:
        self._last: list[str] | str = ""

    def show(self, report: Report) -> None:
        lines = report.lines()
        if lines != self._last:
            self._last = lines
            click.echo("\n".join([f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z}", *lines, ""]))

    def fail(self, error: str) -> None:
        if error != self._last:
            self._last = error
            print_error(error)


class _LiveView(_View):
    """Draws each report in the place of the one before."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._last: RenderableType = ""

    def drawing(self) -> AbstractContextManager[object]:
        return self._live

    def show(self, report: Report) -> None:
        tables = [_drawn(rows, report.is_marked) for rows in report.tables if rows]
        self._last = Group(*tables) if tables else Text(report.otherwise)
        self._draw(Text("Ctrl-C stops", style="dim"))

    def fail(self, error: str) -> None:
        self._draw(Text(cell(error), style="yellow"))

    def _draw(self, below: Text) -> None:
        self._live.update(Group(self._last, below), refresh=True)


def _drawn(rows: Rows, is_marked: Callable[[Mapping[str, Any]], bool]) -> Table:
    drawn = Table(box=None)
    for name in rows[0]:
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        drawn.add_column(escape(name), justify="right" if numeric else "left")
    for row in rows:
        drawn.add_row(*(escape(cell(value)) for value in row.values()), style="yellow" if is_marked(row) else "")
    return drawn
