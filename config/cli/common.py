"""What several commands need."""

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
    """Adds `--config`."""
    option = click.option(
        "--config", "config_file", type=click.Path(path_type=Path), help="A TOML file with settings (default: callboard.toml)."
    )
    return option(function)


def loaded(config_file: Path | None) -> Loaded:
    """The settings from the file and the environment."""
    return load(config_file, os.environ)


def set_up_logging(settings: Settings) -> None:
    """Logs go to standard error, one line each."""
    logging.basicConfig(
        level=settings.log.level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    for chatty in ("aiosqlite", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def table(rows: list[dict[str, str]], as_json: bool) -> None:
    """Prints rows in columns, or (for scripts) one JSON object a line."""
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
def patience(what: str) -> Generator[None, None, None]:
    """Shows on a terminal what is going on, once that has taken a second."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    status = console.status(what)
    timer = threading.Timer(1.0, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        status.stop()


def run_loop(work: Coroutine[Any, Any, T], *, debug: bool = False) -> T:
    """Runs an event loop: uvloop's, or asyncio's own under a debugger and where there is no uvloop."""
    import asyncio

    _allow_connections()

    if not debug:
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.run(work)
    return asyncio.run(work)


def _allow_connections() -> None:
    """Lets the process hold as many connections as the system allows; often the limit at first is 1,024."""
    try:
        import resource
    except ImportError:  # there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
