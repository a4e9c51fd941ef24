"""What commands print: errors, JSON, tables, and a spinner. Nothing from outside can forge a line or control the terminal."""

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import rich_click as click

from runtime.telemetry import printable, printable_json


def print_error(text: object) -> None:
    """Print one line with the name of the command to standard error."""
    with suppress(BrokenPipeError):
        click.echo(f"callboard: {printable(str(text))}", err=True)


def json_text(value: Any, *, indent: bool = False) -> str:
    """Return a value as JSON text for a terminal: control characters that JSON allows are escaped, too."""
    text = msgspec.json.encode(value)
    lines = (msgspec.json.format(text, indent=2) if indent else text).decode().split("\n")
    return "\n".join(map(printable_json, lines))


def table(rows: list[dict[str, str]], as_json: bool) -> None:
    """Print rows as aligned columns with a header, or as one JSON object per line."""
    if as_json:
        for row in rows:
            click.echo(json_text(row))
        return
    if not rows:
        return
    rows = [{name: printable(text) for name, text in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in rows[0]}, *rows]:
        click.echo("  ".join(text.ljust(widths[name]) for name, text in row.items()).rstrip())


@contextmanager
def progress(text: str) -> Generator[None, None, None]:
    """Show a spinner with a text if the body of the `with` block takes longer than a second. Does nothing without a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    status = Console(stderr=True).status(text)
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        status.stop()
