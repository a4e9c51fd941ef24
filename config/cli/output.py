"""What commands print: errors, JSON, tables, and progress. Nothing from outside can forge a line or control the terminal."""

import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import msgspec
import rich_click as click

from runtime.telemetry import printable, printable_json

Rows = Sequence[Mapping[str, Any]]
"""The rows of a table, all with the same names. In JSON their values keep their types."""


def print_error(text: object) -> None:
    """Print one line with the name of the command to standard error."""
    with suppress(BrokenPipeError):
        click.echo(f"callboard: {printable(str(text))}", err=True)


def json_text(value: Any, *, indent: bool = False) -> str:
    """Return a value as JSON text for a terminal: control characters that JSON allows are escaped, too."""
    text = msgspec.json.encode(value)
    lines = (msgspec.json.format(text, indent=2) if indent else text).decode().split("\n")
    return "\n".join(map(printable_json, lines))


def table(rows: Rows, as_json: bool) -> None:
    """Print rows as aligned columns with a header, or as one JSON object per line."""
    for line in map(json_text, rows) if as_json else table_lines(rows):
        click.echo(line)


def table_lines(rows: Rows) -> list[str]:
    """Return rows as aligned columns with a header."""
    if not rows:
        return []
    cells = [{name: cell(value) for name, value in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in cells[0]}
    return [
        "  ".join(text.ljust(widths[name]) for name, text in row.items()).rstrip()
        for row in [{name: name for name in cells[0]}, *cells]
    ]


def cell(value: object) -> str:
    """Return a value as the text of a table's cell."""
    return "-" if value is None else printable(str(value))


def json_value(text: str) -> Any:
    """Return the value of a JSON text, for a document that contains it; None for no text, and text that is not JSON as it is."""
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def without_progress() -> Generator[None, None, None]:
    """Show no spinners inside the `with` block, which draws on the terminal itself."""
    before = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(before)


@contextmanager
def progress(text: str) -> Generator[Callable[[float], None], None, None]:
    """Show a spinner with a text if the body of the `with` block takes longer than a second. Does nothing without a terminal.

    Yields a function that shows how much is done, from 0 to 1. Any thread may call it.
    """
    if _quiet.get() or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.markup import escape

    shown = escape(printable(text))
    status = Console(stderr=True).status(shown)
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda part: status.update(f"{shown}: {part:.0%}")
    finally:
        timer.cancel()
        status.stop()
