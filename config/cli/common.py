"""Options and helpers that several commands share."""

import logging
import os
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import rich_click as click
from rich.console import Console

from config.load import Loaded, load
from config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

T = TypeVar("T")


def with_config(function: F) -> F:
    """Add the option `--config` to a command."""
    option = click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="The TOML file to read settings from (default: callboard.toml).",
    )
    return option(function)


def with_json(function: F) -> F:
    """Add the option `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")(function)


def loaded(config_file: Path | None) -> Loaded:
    """Load the settings from a file and the environment."""
    return load(config_file, os.environ)


def http_url(host: str, port: int) -> str:
    """Return the URL of an HTTP server, given its host name or IP address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def set_up_logging(settings: Settings) -> None:
    """Send log records to standard error."""
    logging.basicConfig(
        level=settings.log.level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for verbose in ("aiosqlite", "watchfiles"):
        logging.getLogger(verbose).setLevel(logging.WARNING)


def table(rows: list[dict[str, str]], as_json: bool) -> None:
    """Print rows as aligned columns with a header, or as one JSON object per line."""
    if as_json:
        for row in rows:
            click.echo(msgspec.json.encode(row).decode())
        return
    if not rows:
        return
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in rows[0]}, *rows]:
        click.echo("  ".join(text.ljust(widths[name]) for name, text in row.items()).rstrip())


@contextmanager
def progress(text: str) -> Generator[None, None, None]:
    """Show a spinner with a text if the body of the `with` block takes longer than a second. Does nothing without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    status = console.status(text)
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        status.stop()


def run_loop(work: Coroutine[Any, Any, T], *, debug: bool = False) -> T:
    """Run a coroutine on uvloop, or on asyncio's own event loop if `debug` is set or uvloop is not installed."""
    import asyncio

    _raise_file_limit()

    if not debug:
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.run(work)
    return asyncio.run(work)


def _raise_file_limit() -> None:
    """Raise the limit of open files, and thus of connections, as far as the system allows. It often starts at 1,024."""
    try:
        import resource
    except ImportError:  # the platform has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
